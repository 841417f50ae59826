"""The attention of BoTNet against two other ways of computing it, on maps that are not square."""

from __future__ import annotations

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn

from vitrail import create_model, record
from vitrail.models.botnet import BottleneckAttention, resize_table


def layer(stride: int = 1) -> BottleneckAttention:
    torch.manual_seed(0)
    attention = BottleneckAttention(16, 2, stride, (4, 6)).double()
    for table in attention.pos_embed.parameters():
        torch.nn.init.normal_(table)  # so that positions weigh as much as contents
    return attention


def explicit(attention: BottleneckAttention, x: torch.Tensor) -> torch.Tensor:
    """Figure 4 query by query: q k + q r_h + q r_w, all of it scaled, each r looked up by its offset."""
    heads, (height, width) = attention.num_heads, x.shape[-2:]
    rows, columns = attention.pos_embed.height_rel, attention.pos_embed.width_rel
    qkv = torch.einsum("oc,bcyx->boyx", attention.qkv.weight[:, :, 0, 0], x)
    q, k, v = (part.unflatten(1, (heads, -1)) for part in qkv.chunk(3, dim=1))
    out = torch.zeros_like(x).unflatten(1, (heads, -1))
    for y in range(height):
        for x0 in range(width):
            query = q[..., y, x0] * q.shape[2] ** -0.5
            logits = torch.stack(
                [
                    (query * (k[..., b, a] + rows[b - y + height - 1] + columns[a - x0 + width - 1])).sum(-1)
                    for b in range(height)
                    for a in range(width)
                ],
                dim=-1,
            )
            out[..., y, x0] = torch.einsum("bhm,bhdm->bhd", logits.softmax(-1), v.flatten(3))
    return out.flatten(1, 2)


def test_equals_a_gather_query_by_query() -> None:
    attention = layer()
    x = torch.randn(2, 16, 4, 6, dtype=torch.double)
    torch.testing.assert_close(attention(x), explicit(attention, x))


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_timms_layer_with_scaled_positions(stride: int) -> None:
    attention = layer(stride)
    other = BottleneckAttn(16, feat_size=(4, 6), stride=stride, num_heads=2, scale_pos_embed=True).double()
    other.load_state_dict(attention.state_dict(), strict=True)
    x = torch.randn(2, 16, 4, 6, dtype=torch.double)
    torch.testing.assert_close(attention(x), other(x))


def test_tables_keep_their_ends_and_their_middle_when_resized() -> None:
    table = torch.randn(7, 3)
    larger = resize_table(table, 7)
    assert larger.shape == (13, 3)
    torch.testing.assert_close(larger[::2], table)
    assert resize_table(table, 4) is table


def test_odd_maps_are_pooled_up_to_what_the_shortcut_has() -> None:
    model = create_model("botnet50_224", depths=(1, 1, 1, 2), base_width=8, img_size=80, num_classes=5).eval()
    with record(model) as maps:
        levels = model.pyramid(torch.randn(1, 3, 80, 80))
    assert [level.shape[-1] for level in levels] == [20, 10, 5, 3]
    assert [tuple(weights.shape) for weights in maps.values()] == [(1, 4, 25, 25), (1, 4, 9, 9)]


def test_squeeze_and_excitation_in_convolutional_blocks_only() -> None:
    with torch.device("meta"):
        names = [name for name, _ in create_model("botnet_s1_59_224").named_modules() if name.endswith(".se")]
    assert len(names) == 3 + 4 + 6
    assert not [name for name in names if name.startswith("layer4")]
