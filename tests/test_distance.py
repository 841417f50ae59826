"""Attention distance and entropy: closed forms, masks, and every architecture."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail import record
from vitrail.errors import UserError
from vitrail.interpretability.distance import Measure, attention_statistics, distances, measure
from vitrail.layers.attention import Places, attention_weights, global_places, observe, probing
from vitrail.models import create_model
from vitrail.models.sasa_resnet import neighbourhood_places
from vitrail.models.swin import places_of_windows, shift_mask

ONLY_THE_CLASS_TOKEN_ASKS = ("patchconvnet_s60_224",)


def plain(side: int, pixels: int, prefix: int = 0) -> tuple[Places, tuple[int, int]]:
    """A square grid of patches of so many pixels, and the size of its image."""
    return global_places((side, side), (side, side), prefix), (side * pixels, side * pixels)


def even(places: Places, heads: int = 1, batch: int = 1) -> Tensor:
    """Uniform attention over all keys."""
    folds, queries = places.queries.shape
    keys = places.keys.shape[-1]
    return torch.full((batch * folds, heads, queries, keys), 1 / keys)


def of(weights: Tensor, places: Places, size: tuple[int, int]) -> Measure:
    """`measure`, after a check that the baseline does not depend on the weights' head."""
    found = measure(weights, places, size)
    assert all(len(part) == weights.shape[1] for part in found)
    assert len(found.uniform_distance.unique()) == 1
    return found


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("side", "pixels", "mean"), [(14, 16, 116.5), (7, 32, 115.5), (16, 14, 116.6), (24, 16, 200.0), (28, 8, 116.7)]
)
def test_distance_of_uniform_attention(side: int, pixels: int, mean: float) -> None:
    places, size = plain(side, pixels, prefix=1)
    found = of(even(places, heads=3, batch=2), places, size)
    assert found.distance.tolist() == pytest.approx([mean] * 3, abs=0.05)
    assert found.uniform_distance.tolist() == pytest.approx(found.distance.tolist(), rel=1e-6)
    assert found.entropy.tolist() == pytest.approx([math.log(side**2)] * 3, rel=1e-6)
    assert found.prefix_mass.tolist() == pytest.approx([1 / (side**2 + 1)] * 3, rel=1e-5)


@pytest.mark.parametrize(("side", "mean"), [(56, 14.4), (28, 28.9), (14, 57.8), (7, 115.5)])
def test_distance_of_uniform_attention_in_swins_windows(side: int, mean: float) -> None:
    places = places_of_windows(7, 0, (side, side))
    found = of(even(places), places, (224, 224))
    assert found.distance.item() == pytest.approx(mean, abs=0.05)
    assert found.entropy.item() == pytest.approx(math.log(49), rel=1e-6)


def test_distances_of_single_places() -> None:
    apart = distances(*plain(14, 16))[0]
    centre, corner = [6 * 14 + 6, 6 * 14 + 7, 7 * 14 + 6, 7 * 14 + 7], 0
    assert apart.max().item() == pytest.approx(294.2, abs=0.05)
    assert apart[centre].mean().item() == pytest.approx(86.0, abs=0.05)
    assert apart[corner].mean().item() == pytest.approx(161.0, abs=0.05)
    assert torch.equal(apart, apart.T)
    assert apart[0, 1] == 16
    assert apart[0, 14] == 16


def test_pixels_of_a_picture_that_is_not_square() -> None:
    apart = distances(global_places((2, 4), (2, 4)), (20, 80))[0]
    assert apart[0].tolist() == pytest.approx([0, 20, 40, 60, 10, *(math.hypot(10, x) for x in (20, 40, 60))])


def test_a_cell_of_a_coarser_grid_lies_at_its_centre() -> None:
    places = Places(torch.arange(16)[None], torch.arange(20)[None, None], (4, 4), ((4, 4), (2, 2)))
    apart = distances(places, (32, 32))[0]
    assert apart[0, 16].item() == pytest.approx(math.hypot(4, 4))  # (4, 4) to (8, 8)
    assert apart[0, 19].item() == pytest.approx(math.hypot(20, 20))


def test_identity_has_no_distance_and_no_entropy() -> None:
    places, size = plain(14, 16)
    found = of(torch.eye(196)[None, None], places, size)
    assert found.distance.item() == 0
    assert found.entropy.item() == 0
    assert found.prefix_mass.item() == 0


def test_entropy_of_half_identity() -> None:
    """197 tokens of which one lies nowhere in the usual model; here all of them are keys with a place."""
    tokens = 197
    own, other = 1 / 2 + 1 / (2 * tokens), 1 / (2 * tokens)
    closed = -own * math.log(own) - (tokens - 1) * other * math.log(other)
    assert closed == pytest.approx(3.3188, abs=5e-5)
    weights = (torch.eye(tokens) + 1 / tokens) / 2
    found = of(weights[None, None], global_places((1, tokens), (1, tokens)), (16, 16 * tokens))
    assert found.entropy.item() == pytest.approx(closed, rel=1e-6)


def test_a_shift_of_one_patch_is_one_patch_far() -> None:
    places, size = plain(5, 16)
    to_the_right = torch.eye(25).roll(1, dims=1)
    ends = torch.arange(4, 25, 5)  # the last of a row goes to the first of the next, or of all
    apart = distances(places, size)[0]
    expected = (20 * 16 + apart[ends, (ends + 1) % 25].sum()) / 25
    assert of(to_the_right[None, None], places, size).distance.item() == pytest.approx(expected.item())


def test_what_goes_to_the_prefix_is_taken_out_and_reported() -> None:
    places, size = plain(4, 8)
    patches = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
    whole = torch.full((2, 3, 18, 18), 1 / 18)
    whole[:, :, 2:, 2:], whole[:, :, 2:, :2] = patches * 0.4, 0.3
    alone, joined = of(patches, places, size), of(whole, plain(4, 8, prefix=2)[0], size)
    for name in ("distance", "entropy", "uniform_distance", "uniform_entropy"):
        torch.testing.assert_close(getattr(joined, name), getattr(alone, name), rtol=1e-5, atol=0)
    assert alone.cls_entropy.isnan().all()
    assert joined.prefix_mass.tolist() == pytest.approx([0.6] * 3, rel=1e-6)
    assert joined.cls_entropy.tolist() == pytest.approx([math.log(16)] * 3, rel=1e-6)


# ---------------------------------------------------------------------- masks, borders


def test_masked_pairs_of_shifted_windows_have_no_weight_in_the_baseline() -> None:
    side, shift, grid = 7, 3, (14, 14)
    places, mask = places_of_windows(side, shift, grid), shift_mask(side, shift, grid)
    nothing = torch.zeros(4, 2, 49, 8)
    found = of(attention_weights(nothing, nothing, bias=mask), places, (224, 224))
    assert found.distance.tolist() == pytest.approx(found.uniform_distance.tolist(), rel=1e-6)
    assert found.entropy.tolist() == pytest.approx(found.uniform_entropy.tolist(), rel=1e-6)
    # the four windows have 1, 2, 2 and 4 regions; a query sees its own
    seen = [49] * 49 + [28] * 28 * 2 + [21] * 21 * 2 + [16] * 16 + [12] * 12 * 2 + [9] * 9
    assert found.uniform_entropy[0].item() == pytest.approx(np.log(seen).mean(), rel=1e-6)
    assert found.uniform_distance[0] < of(even(places, 2), places, (224, 224)).uniform_distance[0]


def test_padding_is_no_place() -> None:
    places = places_of_windows(4, 0, (6, 6))
    found = of(even(places), places, (60, 60))
    cells = torch.tensor([16, 8, 8, 4], dtype=torch.float64)  # of 16, in each of the four windows
    assert found.prefix_mass.item() == pytest.approx(((1 - cells / 16) * cells).sum().item() / 36, rel=1e-6)
    assert found.entropy.item() == pytest.approx((cells.log() * cells).sum().item() / 36, rel=1e-6)
    assert found.cls_entropy.isnan().all()


def test_neighbourhoods_end_at_the_border() -> None:
    places = neighbourhood_places((3, 3), 3, 1, torch.device("cpu"))
    found = of(even(places), places, (3, 3))
    diagonal = math.sqrt(2)
    corner, side, middle = (2 + diagonal) / 4, (3 + 2 * diagonal) / 6, (4 + 4 * diagonal) / 9
    assert found.distance.item() == pytest.approx((4 * corner + 4 * side + middle) / 9, rel=1e-6)


def test_a_query_that_sees_nothing_is_not_counted() -> None:
    places = Places(torch.arange(4)[None], torch.tensor([[[-1, 0, 1, 2]]]), (2, 2), ((2, 2),))
    causal = attention_weights(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), bias=torch.ones(4, 4).tril().bool())
    found = of(causal, places, (2, 2))
    assert found.entropy.item() == pytest.approx((0 + math.log(2) + math.log(3)) / 3, rel=1e-6)
    assert found.prefix_mass.item() == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3, rel=1e-6)


def test_a_key_that_one_head_leaves_out_is_not_masked() -> None:
    places, size = plain(14, 16)
    found = of(torch.stack([torch.eye(196), torch.full((196, 196), 1 / 196)])[None], places, size)
    assert found.distance.tolist() == pytest.approx([0, 116.49], abs=0.01)
    assert found.uniform_distance.tolist() == pytest.approx([116.49] * 2, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(high=st.integers(1, 5), wide=st.integers(2, 5), prefix=st.integers(0, 3), sharp=st.floats(0, 30))
def test_bounds(high: int, wide: int, prefix: int, sharp: float) -> None:
    places, tokens = global_places((high, wide), (high, wide), prefix), prefix + high * wide
    logits = sharp * torch.randn(2, 3, tokens, tokens, generator=torch.Generator().manual_seed(tokens))
    found = of(logits.softmax(-1), places, (8 * high, 8 * wide))
    assert (found.distance >= 0).all()
    assert (found.distance <= distances(places, (8 * high, 8 * wide)).max()).all()
    assert (found.entropy <= found.uniform_entropy * (1 + 1e-6)).all()
    assert ((found.prefix_mass >= 0) & (found.prefix_mass <= 1 + 1e-6)).all()


# ---------------------------------------------------------------------- models


def pictures(row: Row, count: int = 3) -> Tensor:
    return torch.randn(count, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = pictures(row)
    if row.maps == 0 or row.name in ONLY_THE_CLASS_TOKEN_ASKS:
        because = "it has no softmax attention" if row.maps == 0 else "only a token without a place attends"
        with pytest.raises(UserError, match=f"^distance is not available for .* because {because}"):
            attention_statistics(model, [images])
        return
    found = attention_statistics(model, images.split(2))
    assert found.images == 3
    assert len(found.layers) + len(found.left_out) == row.maps
    with torch.no_grad(), record(model) as maps:
        model(images)
    assert [*found.layers, *found.left_out] == list(maps)  # what only a class token asks comes last
    for index, name in enumerate(found.layers):
        distance, share = found.distance[index], found.entropy_share[index]
        assert distance.shape == share.shape == found.entropy[index].shape == found.prefix_mass[index].shape
        assert distance.shape == maps[name].shape[1:2]
        assert ((distance >= 0) & (distance < row.side * math.sqrt(2))).all()
        assert ((share >= 0) & (share <= 1 + 1e-6)).all()
        assert ((found.prefix_mass[index] >= 0) & (found.prefix_mass[index] < 1)).all()
        assert 0 <= found.uniform_distance[index] < row.side * math.sqrt(2)
    assert set(found.left_out) <= set(found.cls_entropy)
    assert all(model.num_prefix_tokens or name == "attn_pool" for name in found.cls_entropy)


@pytest.mark.parametrize("row", [row for row in KINDS if row.maps], ids=lambda row: row.name)
def test_the_baseline_is_what_uniform_attention_gives(row: Row) -> None:
    """Weights replaced by equal ones over the keys that are not masked, in every site."""
    if row.name in ONLY_THE_CLASS_TOKEN_ASKS:
        return
    model = randomise(tiny(row)).eval()

    def evenly(_site: nn.Module, weights: Tensor) -> Tensor:
        open_keys = (weights > 1e-20).any(1, keepdim=True).to(weights).expand_as(weights)  # masked for all heads alike
        return open_keys / open_keys.sum(-1, keepdim=True)

    with probing(evenly):
        found = attention_statistics(model, [pictures(row)])
    for index, name in enumerate(found.layers):
        np.testing.assert_allclose(found.distance[index], found.uniform_distance[index], rtol=1e-5, err_msg=name)
        single = found.entropy[index].max() == 0
        np.testing.assert_allclose(found.entropy_share[index], 0.0 if single else 1.0, rtol=1e-5, err_msg=name)


def test_a_model_equals_the_formula() -> None:
    """Reduced map by map against all maps kept, by the definition."""
    model = randomise(tiny("deit_tiny_distilled_patch16_224")).eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = attention_statistics(model, images.split(2))
    with torch.no_grad(), record(model) as maps:
        model(images)
    axis = torch.arange(4) * 8.0
    cells = torch.cartesian_prod(axis, axis)
    for index, name in enumerate(found.layers):
        patches = maps[name][:, :, 2:, 2:]
        patches = patches / patches.sum(-1, keepdim=True)
        expected = (patches * torch.cdist(cells, cells)).sum(-1).mean((0, 2))
        np.testing.assert_allclose(found.distance[index], expected.numpy(), rtol=1e-5)
        nats = -(patches * patches.log()).sum(-1).mean((0, 2))
        np.testing.assert_allclose(found.entropy[index], nats.numpy(), rtol=1e-5)
        np.testing.assert_allclose(found.entropy_share[index], nats.numpy() / math.log(16), rtol=1e-5)
        taken = maps[name][:, :, 2:, :2].sum(-1).mean((0, 2))
        np.testing.assert_allclose(found.prefix_mass[index], taken.numpy(), rtol=1e-5)
        row = maps[name][:, :, 0, 2:] / maps[name][:, :, 0, 2:].sum(-1, keepdim=True)
        np.testing.assert_allclose(found.cls_entropy[name], -(row * row.log()).sum(-1).mean(0).numpy(), rtol=1e-5)


def test_batches_do_not_matter_and_modes_come_back() -> None:
    model = randomise(tiny("swin_tiny_patch4_window7_224")).train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    one, other = (attention_statistics(model, images.split(size)) for size in (4, 1))
    assert model.training
    for field in ("distance", "entropy", "entropy_share", "prefix_mass"):
        for whole, parts in zip(getattr(one, field), getattr(other, field), strict=True):
            np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.uniform_distance, other.uniform_distance, rtol=1e-6)


def test_two_maps_at_most_are_alive() -> None:
    model = create_model("vit_tiny_patch16_224", embed_dim=24, depth=6, num_heads=2, patch_size=8, img_size=32).eval()
    alive: list[int] = []
    maps: list[weakref.ref[Tensor]] = []

    def count(_site: nn.Module, weights: Tensor) -> Tensor:
        maps.append(weakref.ref(weights))
        alive.append(sum(ref() is not None for ref in maps))
        return weights

    with probing(count):
        attention_statistics(model, [torch.randn(2, 3, 32, 32)])
    assert len(alive) == 6
    assert max(alive) <= 2


def test_a_compiled_model_is_looked_at_as_it_was() -> None:
    model, images = randomise(tiny("vit_tiny_patch16_224")).eval(), torch.randn(2, 3, 32, 32)
    plain, compiled = (attention_statistics(whole, [images]) for whole in (model, torch.compile(model)))
    assert plain.layers == compiled.layers
    assert np.array_equal(plain.distance, compiled.distance)


def test_channels_are_left_out_and_named() -> None:
    class Channels(nn.Module):
        """Attention among 6 channels, which is no square."""

        def forward(self, x: Tensor) -> Tensor:
            channels = x.flatten(2)  # (B, 6, P)
            return observe(self, attention_weights(channels[:, None], channels[:, None]))[:, 0] @ channels

    class Both(nn.Module):
        """Channels, then what has places."""

        def __init__(self) -> None:
            super().__init__()
            self.channels, self.vit = Channels(), randomise(tiny("vit_tiny_patch16_224"))
            self.num_prefix_tokens = 1

        def forward(self, images: Tensor) -> Tensor:
            self.channels(images.repeat(1, 2, 1, 1))
            return self.vit(images)

    found = attention_statistics(Both().eval(), [torch.randn(2, 3, 32, 32)])
    assert found.left_out == ["channels"]
    assert found.layers == ["vit.blocks.0.attn", "vit.blocks.1.attn"]
    assert list(found.cls_entropy) == found.layers


def test_no_image_is_one_sentence() -> None:
    with pytest.raises(UserError, match="there are no images"):
        attention_statistics(tiny("vit_tiny_patch16_224"), [])
