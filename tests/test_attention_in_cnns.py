"""Attention in convolutional networks: against other implementations, on pictures that are not square, at first."""

from __future__ import annotations

import pytest
import torch
from rows import ROWS
from test_models import assert_equals_reference, difference, randomise, tiny
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.non_local_attn import NonLocalAttn
from torch import nn
from torchvision.models import resnet50

from vitrail import create_model, record
from vitrail.errors import UserError
from vitrail.models import aa_resnet, lr_net, sagan_resnet, sasa_resnet
from vitrail.models.nonlocal_resnet import EmbeddedNonLocal

NAMES = [
    "nonlocal_resnet50_5",
    "nonlocal_resnet50_5_gaussian",
    "nonlocal_resnet50_5_dot",
    "nonlocal_resnet50_5_concat",
    "sagan_resnet50",
    "sagan_resnet50_paper",
    "sagan_resnet50_plain",
    "aa_resnet34",
    "aa_resnet50",
    "aa_resnet50_kappa100",
    "sasa_resnet26",
    "sasa_resnet26_full",
    "lr_net26",
]
LARGE_WINDOWS = {"sasa_resnet26": {"kernel_size": 7}, "lr_net26": {"kernel_size": 7}}


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_reference_where_height_is_not_width(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    assert_equals_reference(row, (64, 96), **{**row.tiny, **LARGE_WINDOWS.get(name, {})})


@pytest.mark.parametrize("name", ["nonlocal_resnet50_5", "nonlocal_resnet50_5_concat", "sagan_resnet50"])
def test_put_into_a_trained_resnet_it_changes_nothing_at_first(name: str) -> None:
    other = randomise(resnet50()).eval()
    model = create_model(name).eval()
    missing, unexpected = model.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert all(".attn." in key for key in missing)
    images = features(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other(images))


# ---------------------------------------------------------------------- non-local, SAGAN


def test_embedded_equals_timms_layer() -> None:
    """timm has no pooling, and divides by the width of the map."""
    ours, theirs = randomise(EmbeddedNonLocal(16)).eval(), NonLocalAttn(16, rd_channels=8).eval()
    ours.pool = nn.Identity()
    theirs.scale = 8**-0.5
    names = {"theta": "t", "phi": "p", "g": "g", "out": "z", "bn": "norm"}
    state = {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": x for key, x in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    x = features(2, 16, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_singular_values_come_down_to_one() -> None:
    conv = sagan_resnet.SpectralConv(12, 6).train()
    nn.init.normal_(conv.weight)
    x = torch.eye(12)[:, :, None, None]
    before = conv.u.clone()
    for _ in range(200):
        conv(x)
    assert not torch.equal(before, conv.u)
    matrix = conv.eval()(x)[:, :, 0, 0].detach()  # the normalised matrix, column by column
    assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1, abs=1e-4)
    kept = conv.u.clone()
    conv(x)
    assert torch.equal(kept, conv.u), "a pass without training writes nothing"


# ---------------------------------------------------------------------- attention-augmented convolution


def test_attended_channels_equal_timms_layer_with_scaled_positions() -> None:
    config = aa_resnet.Config((1, 1, 1, 1), kappa=0.25, upsilon=0.5, num_heads=2)
    ours = randomise(aa_resnet.AugmentedConv(16, 16, 1, (4, 6), config)).double()
    theirs = BottleneckAttn(16, 8, (4, 6), num_heads=2, dim_head=20, scale_pos_embed=True).double()
    kept = ("qkv", "pos_embed")
    theirs.load_state_dict({key: x for key, x in ours.state_dict().items() if key.startswith(kept)}, strict=True)
    x = features(2, 16, 4, 6).double()
    torch.testing.assert_close(ours(x)[:, 8:], ours.proj(theirs(x)))
    torch.testing.assert_close(ours(x)[:, :8], ours.conv(x))


def test_channels_of_the_paper() -> None:
    """At least 20 a head, and multiples of the heads."""
    config = aa_resnet.VARIANTS["aa_resnet50"]
    layers = [aa_resnet.AugmentedConv(width, width, 1, (7, 7), config) for width in (128, 256, 512)]
    assert [(layer.d_k, layer.d_v) for layer in layers] == [(160, 8), (160, 24), (160, 48)]


# ---------------------------------------------------------------------- local attention


@pytest.mark.parametrize("stride", [1, 2])
def test_places_of_neighbourhoods(stride: int) -> None:
    places = sasa_resnet.neighbourhood_places((5, 6), 3, stride, torch.device("cpu"))
    assert places.keys[0, 0].tolist() == [-1, -1, -1, -1, 0, 1, -1, 6, 7]
    if stride == 1:
        assert places.keys[7, 0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    else:
        assert places.keys[4, 0].tolist() == [7, 8, 9, 13, 14, 15, 19, 20, 21]  # around row 2, column 2
    assert places.queries.flatten().tolist() == list(range(30 if stride == 1 else 9))


def test_a_key_outside_the_map_takes_part_in_stand_alone_attention() -> None:
    layer = sasa_resnet.LocalAttention(8, 2, 3, 1)
    with record(layer) as maps:
        layer(features(1, 8, 4, 4))
    outside = maps.places[""].keys < 0
    assert outside[0].sum() == 5
    assert maps[""][0, :, 0, outside[0, 0]].min() > 0


def test_a_position_outside_the_map_has_no_weight_among_local_relations() -> None:
    layer = lr_net.LocalRelation(20, 8, 3, 2)
    assert layer.groups == 3  # 8, 8 and 4 channels
    with record(layer) as maps:
        y = layer(features(2, 20, 5, 7))
    assert y.shape == (2, 20, 3, 4)
    assert maps[""].shape == (2 * 3 * 4, 3, 1, 9)
    outside = (maps.places[""].keys < 0).repeat(2, 1, 1)[:, None].expand_as(maps[""])
    assert maps[""][outside].max() < 1e-30


def test_channels_of_a_group_share_their_weights() -> None:
    """A group that sees a constant map gives it back inside, whatever the others see."""
    layer = lr_net.LocalRelation(16, 8, 3, 1)
    nn.init.eye_(layer.proj.weight[:, :, 0, 0].data)
    x = features(1, 16, 6, 6)
    x[:, 8:] = 3.0
    y = layer(x)
    torch.testing.assert_close(y[:, 8:], x[:, 8:])
    assert difference(y[:, :8], x[:, :8]) > 0.1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: create_model("sasa_resnet26", kernel_size=4), "no position in its middle"),
        (lambda: create_model("sasa_resnet26", num_heads=48), "change base_width"),
        (lambda: create_model("lr_net26", kernel_size=4), "no position in its middle"),
        (lambda: create_model("aa_resnet50", upsilon=0.01), "raise upsilon"),
        (lambda: tiny("sasa_resnet26_full")(torch.randn(1, 3, 66, 64)), "window of the stem"),
    ],
)
def test_mistakes_are_said_in_one_sentence(call, says: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
