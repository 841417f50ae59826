"""Tokens, positions, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import PatchDropout as TimmPatchDropout
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitrail import create_model
from vitrail.errors import UserError
from vitrail.layers.attention import Places, probing, received
from vitrail.layers.blocks import DropPath, LayerScale, drop_path_rates, residual
from vitrail.layers.position import relative_index, relative_logits, resize_position
from vitrail.layers.tokens import PatchDropout, PatchEmbed, join_windows, windows


def test_patches_are_in_reading_order() -> None:
    embed = PatchEmbed(2, 1, 4)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(4).view(4, 1, 2, 2))  # each channel copies one pixel of the patch
        embed.proj.bias.zero_()
        tokens = embed(torch.arange(16.0).view(1, 1, 4, 4))
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_sides_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="30x32 is not divisible by the patch size 8; the nearest sizes are 24 and 32"):
        PatchEmbed(8, 3, 4).grid(30, 32)


@settings(deadline=None, max_examples=25)
@given(old=st.integers(1, 12), height=st.integers(1, 20), width=st.integers(1, 20), prefix=st.integers(0, 2))
def test_position_resizing_is_timms(old: int, height: int, width: int, prefix: int) -> None:
    table = torch.randn(1, prefix + old * old, 6, generator=torch.Generator().manual_seed(old))
    resized = resize_position(table, (height, width), prefix)
    # timm leaves a table of the right length alone; told the old grid, it looks at the shape as well
    expected = resample_abs_pos_embed(table, [height, width], [old, old], num_prefix_tokens=prefix)
    torch.testing.assert_close(resized, expected)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])


def test_drop_path_keeps_the_expectation_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.3).train()(torch.ones(20000, 3, 2))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(dropped[:, 0, 0], dropped[:, 2, 1])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(DropPath(0.3).eval()(torch.ones(4)), torch.ones(4))


@pytest.mark.parametrize(("size", "rate"), [(1, 0.4), (2, 0.1), (5, 0.3), (8, 0.5), (10, 0.75)])
def test_each_sample_of_a_residual_survives_as_with_a_mask(size: int, rate: float) -> None:
    """Whatever the batch: with probability 1 - rate, scaled by its inverse; and no more is computed than must be."""
    torch.manual_seed(0)
    drop_path, seen = DropPath(rate).train(), []

    def branch(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.ones_like(x)

    draws = 4000
    added = torch.stack([residual(torch.zeros(size, 3), branch, drop_path) for _ in range(draws)])
    assert added.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    assert torch.equal(added[..., 0], added[..., 2])
    survived = (added[..., 0] > 0).double().mean(0)
    deviation = (rate * (1 - rate) / draws) ** 0.5
    assert (survived - (1 - rate)).abs().max() < 4.5 * deviation
    assert set(seen) == {math.ceil(size * (1 - rate))}


def test_a_residual_is_the_masked_one_forward_and_backward() -> None:
    """With the samples that it chose as the mask."""
    torch.manual_seed(0)
    layer, drop_path = nn.Linear(6, 6), DropPath(0.5).train()
    x = torch.randn(8, 4, 6, requires_grad=True)
    torch.manual_seed(1)
    found = residual(x, layer, drop_path)
    kept = torch.zeros(8, 1, 1)
    torch.manual_seed(1)
    kept[torch.randperm(8)[:4]] = 2.0
    weight = torch.randn(8, 4, 6)
    expected = x + layer(x) * kept
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()]) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_residual_drops_nothing_when_it_scores_and_computes_all_when_watched() -> None:
    x, seen = torch.randn(8, 4), []

    def branch(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    assert torch.equal(residual(x, branch, DropPath(0.5).eval()), 3 * x)
    with probing(lambda _site, weights: weights):
        residual(x, branch, DropPath(0.5).train())
    residual(x, branch, DropPath(0.0).train())
    assert seen == [8, 8, 8]


def test_a_model_with_stochastic_depth_compiles_whole() -> None:
    model = create_model("vit_pico_patch2_8", drop_path_rate=0.5).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(torch.randn(6, model.config.in_chans, 8, 8)).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_patch_dropout_is_timms(prefix: int) -> None:
    x = torch.randn(3, prefix + 10, 4)
    ours, theirs = PatchDropout(0.35, prefix).train(), TimmPatchDropout(0.35, prefix).train()
    found, expected = [], []
    for layer, kept in ((ours, found), (theirs, expected)):
        torch.manual_seed(0)
        kept.append(layer(x))
    assert torch.equal(found[0], expected[0])
    assert found[0].shape == (3, prefix + 6, 4)
    assert torch.equal(found[0][:, :prefix], x[:, :prefix])
    assert ours.eval()(x) is x
    assert PatchDropout(0.99, prefix).train()(x).shape[1] == prefix + 1


def test_a_vit_learns_without_half_of_its_patches() -> None:
    model = create_model("vit_pico_patch2_8", patch_drop_rate=0.5).train()
    seen = []
    model.blocks[0].register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape[1]))
    images = torch.randn(2, model.config.in_chans, 8, 8)
    model(images).sum().backward()
    model.eval()(images)
    assert seen == [model.num_prefix_tokens + 8, model.num_prefix_tokens + 16]


def test_drop_path_rates_rise_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_layer_scale_is_a_factor_a_channel() -> None:
    scale = LayerScale(3, init=0.5)
    nn.init.constant_(scale.gamma, 2.0)
    assert torch.equal(scale(torch.ones(2, 3)), torch.full((2, 3), 2.0))


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3), down=st.integers(1, 4), across=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4)
)
def test_windows_are_cut_in_reading_order_and_joined_again(batch: int, down: int, across: int, h: int, w: int) -> None:
    grid = down * h, across * w
    picture = torch.arange(batch * grid[0] * grid[1]).view(batch, *grid, 1)
    cut = windows(picture, h, w)
    assert cut.shape == (batch * down * across, h * w, 1)
    assert torch.equal(join_windows(cut, h, w, grid), picture)
    second = picture[0, :h, w : 2 * w] if across > 1 else picture[0, :h, :w]
    assert torch.equal(cut[min(1, across - 1)].flatten(), second.flatten())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 4), (5, 2)])
def test_relative_index_is_unique_by_offset(height: int, width: int) -> None:
    index = relative_index(height, width)
    cells = [(y, x) for y in range(height) for x in range(width)]
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            assert index[i, j] == (y - v + height - 1) * (2 * width - 1) + (x - u + width - 1)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5)])
def test_relative_logits_are_the_explicit_sum(height: int, width: int) -> None:
    q = torch.randn(2, 3, height * width, 4, dtype=torch.float64)
    rel_h, rel_w = (torch.randn(2 * side - 1, 4, dtype=torch.float64) for side in (height, width))
    logits = relative_logits(q, rel_h, rel_w, (height, width))
    for i in range(height * width):
        for j in range(height * width):
            down, across = j // width - i // width, j % width - i % width
            vector = rel_h[down + height - 1] + rel_w[across + width - 1]
            torch.testing.assert_close(logits[:, :, i, j], q[:, :, i] @ vector)


@pytest.mark.parametrize("fold", ["windows", "rows", "shifted"])
def test_uniform_weights_cover_the_picture_uniformly(fold: str) -> None:
    grid = (4, 6)
    index = torch.arange(24).view(1, *grid, 1)
    size = {"windows": (2, 3), "rows": (1, 6), "shifted": (2, 3)}[fold]
    parts = windows(index.roll((-1, -1), (1, 2)) if fold == "shifted" else index, *size)[..., 0]
    places = Places(parts, parts[:, None], grid, (grid,))
    weights = torch.full((2 * len(parts), 3, parts.shape[1], parts.shape[1]), 1 / parts.shape[1])
    torch.testing.assert_close(received(weights, places), torch.full((2, 3, *grid), 1 / 24))


def test_pooled_keys_cover_their_share_and_tokens_without_a_place_nothing() -> None:
    grid, coarse = (4, 4), (2, 2)
    queries = torch.arange(-1, 16)[None]  # a class token, then all positions
    keys = torch.cat([torch.tensor([-1]), torch.arange(16), 16 + torch.arange(4)])[None, None]
    weights = torch.zeros(1, 1, 17, 21)
    weights[..., 1] = 0.25  # the first fine position
    weights[..., 20] = 0.5  # the last pooled one: a quarter of the picture
    weights[..., 0] = 0.25  # the class token
    picture = received(weights, Places(queries, keys, grid, (grid, coarse)))[0, 0]
    torch.testing.assert_close(picture.sum(), torch.tensor(0.75))
    torch.testing.assert_close(picture[0, 0], torch.tensor(0.25))
    torch.testing.assert_close(picture[2:, 2:], torch.full((2, 2), 0.125))
