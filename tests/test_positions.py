"""Position embeddings and tables of offsets, of every architecture, or the sentence that says why there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rows import ROWS, Row
from test_models import KINDS, randomise, tiny
from torch import nn

from vitrail import record
from vitrail.errors import UserError
from vitrail.interpretability.positions import position_similarity, relative_bias

# by family: where the positions are of those that have a table, where the first bias is of those that have one
ABSOLUTE = {
    **dict.fromkeys(("cait", "convit", "deit", "deit3", "mvit", "vit", "vit_hybrid", "vit_pico"), "pos_embed"),
    "igpt": "transformer.wpe.weight",
    "simple_vit": "pos_embed",
    "sl_swin": "absolute_pos_embed",
    "sl_vit": "pos_embedding",
    "tnt": "patch_pos",
}
RELATIVE = {
    "coatnet": "stages.2.blocks.0.attn.rel_pos",
    "coatnet_paper": "stages.2.blocks.0.attn.rel_pos",
    "coatnet_rw": "stages.2.blocks.0.attn.rel_pos",
    "focal": "layers.0.blocks.0.attn",
    "lr_net": "conv1.3.prior",
    "sl_swin": "layers.0.blocks.0.attn",
    "swin": "layers.0.blocks.0.attn",
    "swinv2": "layers.0.blocks.0.attn",
}


def family(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    model = tiny(row)
    name = family(model)
    if name in ABSOLUTE:
        found = position_similarity(model)
        high, wide = model.grid
        assert found.name == ABSOLUTE[name]
        assert found.kind == ("fixed" if name == "simple_vit" else "learned")
        assert found.similarity.shape == (high, wide, high, wide)
        flat = found.similarity.reshape(high * wide, -1)
        np.testing.assert_allclose(np.diag(flat), 1, rtol=1e-6)
        np.testing.assert_allclose(flat, flat.T)
        assert np.abs(flat).max() <= 1 + 1e-6
        assert -1 <= found.correlation <= 1
    else:
        instead = "; use relative_bias" if name in RELATIVE else ""
        with pytest.raises(UserError) as error:
            position_similarity(model)
        sentence = f"position_similarity is not available for {name} because it has no table of positions{instead}"
        assert str(error.value) == sentence
    if name in RELATIVE:
        tables = relative_bias(model)
        assert next(iter(tables)) == RELATIVE[name]
        assert all(
            table.ndim == 3 and table.shape[1] % 2 == 1 and np.isfinite(table).all() for table in tables.values()
        )
    else:
        with pytest.raises(UserError, match=f"relative_bias is not available for {name} because it has no table"):
            relative_bias(model)


def test_sines_and_cosines_know_offsets_only() -> None:
    """Toeplitz: the similarity of two patches depends on how far they are apart, down and across."""
    model = tiny("simple_vit_tiny_patch16_224", img_size=48, embed_dim=32)
    found = position_similarity(model)
    side = 6
    rows, columns = np.divmod(np.arange(side**2), side)
    down, across = rows[:, None] - rows, columns[:, None] - columns
    flat = found.similarity.reshape(side**2, -1)
    for y in range(side):
        for x in range(-side + 1, side):
            alike = flat[(down == y) & (across == x)]
            assert np.ptp(alike) < 1e-5
    assert np.ptp(flat) > 0.2
    np.testing.assert_allclose(found.similarity, found.similarity.transpose(1, 0, 3, 2), atol=1e-6)
    assert found.correlation > 0.7


def test_random_positions_have_no_order() -> None:
    """Cosines of random vectors have mean 0 and deviation D ** -0.5."""
    model = tiny("vit_tiny_patch16_224", img_size=80, embed_dim=192, num_heads=2)
    nn.init.normal_(model.pos_embed)
    found = position_similarity(model)
    cosines = found.similarity.reshape(100, 100)[np.triu_indices(100, k=1)]
    assert cosines.std() == pytest.approx(192**-0.5, rel=0.05)
    assert abs(cosines.mean()) < 0.005
    assert abs(found.correlation) < 0.05


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("deit_tiny_distilled_patch16_224", 2), ("deit3_small_patch16_224", 0), ("vit_tiny_patch16_224", 1)],
)
def test_prefix_tokens_are_left_out_and_the_grid_is_the_models(name: str, prefix: int) -> None:
    """A table that is the plane itself, after prefix rows that would tip it."""
    model = tiny(name)
    rows = np.arange(16) // 4
    with torch.no_grad():
        model.pos_embed.fill_(7)
        model.pos_embed[0, prefix:] = 0
        model.pos_embed[0, prefix:, 0] = torch.from_numpy(np.cos(rows / 3))
        model.pos_embed[0, prefix:, 1] = torch.from_numpy(np.sin(rows / 3))
    found = position_similarity(model)
    expected = np.broadcast_to(np.cos((rows[:, None] - rows) / 3), (16, 16)).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    assert np.ptp(found.similarity[1, 2], axis=1).max() < 1e-6, "a row is alike, a column is not"


def test_equal_positions_have_no_order() -> None:
    model = tiny("cait_xxs24_224")
    nn.init.ones_(model.pos_embed)
    assert position_similarity(model).correlation == 0


def window_bias(table: NDArray[np.float32], side: int) -> torch.Tensor:
    """(h, 2 side - 1, 2 side - 1) with the query in the middle -> (h, N, N)."""
    rows, columns = np.divmod(np.arange(side**2), side)
    down, across = rows[None] - rows[:, None], columns[None] - columns[:, None]  # key less query
    return torch.from_numpy(table[:, side - 1 + down, side - 1 + across])


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "sl_swin_tiny_patch4_window4_64",
        "focal_tiny_224",
        "coatnet_0_224",
        "coatnet_rmlp_0_rw_224",
        "lr_net26",
    ],
)
def test_bias_is_what_attention_follows(name: str) -> None:
    """With silent queries and keys attention is the softmax of the bias alone."""
    row = next(row for row in ROWS if row.name == name)
    model = randomise(tiny(row)).eval()
    for part, module in model.named_modules():
        if part.endswith((".qkv", ".query", ".key")):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    if name.startswith("swinv2"):
        for parameter in (p for n, p in model.named_parameters() if n.endswith("q_bias")):
            nn.init.zeros_(parameter)
    with torch.no_grad(), record(model) as maps:
        model(torch.randn(1, 3, row.side, row.side, generator=torch.Generator().manual_seed(0)))
    site, table = next(iter(relative_bias(model).items()))
    weights = maps[site.removesuffix(".rel_pos").removesuffix(".prior")]
    assert np.ptp(table) > 0.01
    assert not np.allclose(table, table[:, ::-1, ::-1], atol=1e-3), "or the direction would not be tested"
    if name == "lr_net26":  # a query in the middle of the map sees its whole neighbourhood
        expected = torch.from_numpy(table).flatten(1).softmax(1)
        assert weights.shape[1:3] == (len(table), 1)
        near = (weights[:, :, 0] - expected).abs().amax((1, 2)) < 1e-5
        assert near.float().mean() > 0.9
        return
    side = (table.shape[1] + 1) // 2
    expected = window_bias(table, side)
    if name.startswith("sl_"):  # no token attends to itself
        expected = expected.masked_fill(torch.eye(side**2, dtype=torch.bool), float("-inf"))
    own = weights[0, :, :, : side**2]  # focal attention has further keys
    torch.testing.assert_close(own / own.sum(-1, keepdim=True), expected.softmax(-1), atol=1e-5, rtol=1e-4)
