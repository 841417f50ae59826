"""Localisation: tokens that are their patch, tokens that are the mean of all, and every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability import localisation as module
from vitrail.interpretability.localisation import landmarks, localisation, patches
from vitrail.interpretability.similarity import MinibatchCKA, gram

Grid = tuple[int, int]


class Tokens(nn.Module):
    """Tokens (B, prefix + P, D) that a function makes of the patches (P, B, D) of a grid."""

    def __init__(self, grid: Grid, kind: str = "own", prefix: int = 0) -> None:
        super().__init__()
        self.grid, self.kind, self.num_prefix_tokens = grid, kind, prefix
        self.block = nn.Identity()

    def trunk(self) -> list[str]:
        return ["block"]

    def forward(self, images: Tensor) -> Tensor:
        side = images.shape[2] // self.grid[0]
        cut = [part for row in images.split(side, 2) for part in row.split(side, 3)]
        x = torch.stack([part.flatten(1) for part in cut], 1)  # (B, P, D)
        if self.kind == "mean":
            x = x.mean(1, keepdim=True).expand_as(x)
        elif self.kind == "next":
            x = x.roll(-1, 1)
        elif self.kind == "dead":
            x = torch.ones_like(x)
        x = x + 0.2 * draw(*x.shape, seed=7) * (self.kind == "own")
        return self.block(torch.cat([draw(len(x), self.num_prefix_tokens, x.shape[2], seed=8), x], 1))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(grid: Grid, batches: int = 2, size: int = 24, side: int = 4) -> list[Tensor]:
    return [draw(size, 3, grid[0] * side, grid[1] * side, seed=seed) for seed in range(batches)]


def everywhere(grid: Grid) -> list[tuple[int, int]]:
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_a_token_that_is_its_patch_peaks_there(grid: Grid, prefix: int) -> None:
    found = localisation(Tokens(grid, prefix=prefix), pictures(grid), tokens=everywhere(grid))
    places = grid[0] * grid[1]
    assert found.maps.shape == (places, *grid)
    assert (found.maps.reshape(places, -1).argmax(1) == np.arange(places)).all()
    assert (found.own, found.mean_rank) == (1.0, 1.0)
    assert found.maps.reshape(places, -1).diagonal().min() > 0.7
    assert (found.sharpness > 1.5).all()
    assert (found.images, found.dropped) == (48, 0)


def test_a_token_that_is_another_patch_peaks_at_that() -> None:
    grid = (2, 3)
    found = localisation(Tokens(grid, "next"), pictures(grid), tokens=[(0, 0), (1, 1)])
    assert found.maps[0].argmax() == 1
    assert found.maps[1].argmax() == 5
    assert found.own == 0
    assert found.mean_rank > 2


def test_the_mean_of_all_has_no_place() -> None:
    grid = (4, 4)
    found = localisation(Tokens(grid, "mean"), pictures(grid), tokens=everywhere(grid))
    assert found.own == 1 / 16
    assert found.mean_rank == pytest.approx(17 / 2)
    np.testing.assert_allclose(found.maps, np.broadcast_to(found.maps[:1], found.maps.shape), atol=1e-9)


def test_a_map_holds_minibatch_cka() -> None:
    grid, model = (2, 3), Tokens((2, 3))
    images = pictures(grid, batches=3)
    found = localisation(model, images, tokens=[(1, 2)])
    for row, column in everywhere(grid):
        sums = MinibatchCKA()
        for batch in images:
            pixels = batch[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            sums.add(gram(model(batch)[:, 5])[None], gram(pixels.flatten(1))[None])
        assert found.maps[0, row, column] == pytest.approx(sums.values()[0, 0], abs=1e-5)
    peak = found.maps[0].max()
    assert found.sharpness[0] == pytest.approx((peak - found.maps[0].mean()) / found.maps[0].std())


def test_memory_bounds_the_blocks_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, model = (2, 5), Tokens((2, 5))
    whole = localisation(model, pictures(grid), tokens=everywhere(grid))
    widest = []
    monkeypatch.setattr(module, "MEMORY", 3 * 32 * 24**2)
    monkeypatch.setattr(module, "gram", lambda x: widest.append(len(x)) or gram(x))
    parts = localisation(model, pictures(grid), tokens=everywhere(grid))
    assert max(widest) == 3
    np.testing.assert_allclose(parts.maps, whole.maps, atol=1e-6)
    assert (parts.own, parts.mean_rank) == (whole.own, whole.mean_rank)


def test_batches_of_another_size_are_left_out_and_counted() -> None:
    grid, model = (2, 2), Tokens((2, 2))
    images = pictures(grid)
    found = localisation(model, [images[0][:2], images[0], images[1][:9], images[1]])
    assert (found.images, found.dropped) == (48, 11)
    np.testing.assert_array_equal(found.maps, localisation(model, images).maps)


@pytest.mark.parametrize("side", [(0, 0), (1, 2)])
def test_places_whose_pixels_never_vary_are_left_out(side: Grid) -> None:
    grid = (2, 3)
    images = pictures(grid)
    for batch in images:
        batch[:, :, 4 * side[0] : 4 * side[0] + 4, 4 * side[1] : 4 * side[1] + 4] = 0.7
    found = localisation(Tokens(grid), images, tokens=everywhere(grid))
    assert np.isnan(found.maps[:, side[0], side[1]]).all()
    assert np.isfinite(found.maps).sum() == 30
    assert (found.own, found.mean_rank) == (1.0, 1.0)
    assert np.isfinite(found.sharpness).all()
    dead = localisation(Tokens(grid, "dead"), images)
    assert np.isnan([dead.own, dead.mean_rank, *dead.sharpness]).all()


def test_patches_are_what_lies_there() -> None:
    images = draw(2, 3, 6, 12)
    cut = patches(images, (2, 3))
    assert cut.shape == (6, 2, 3 * 3 * 4)
    torch.testing.assert_close(cut[4], images[:, :, 3:6, 4:8].flatten(1))
    uneven = patches(draw(2, 3, 7, 12), (2, 5))  # enlarged to 8 x 15
    assert uneven.shape == (10, 2, 3 * 4 * 3)
    ramp = patches(torch.arange(7.0).expand(1, 1, 7, 7), (3, 3)).mean(-1).reshape(3, 3)
    assert (ramp.diff(dim=1) > 1.5).all()
    torch.testing.assert_close(ramp.diff(dim=0), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_landmarks() -> None:
    assert landmarks((7, 7)) == [(0, 0), (0, 3), (1, 1), (3, 3)]
    assert landmarks((14, 8)) == [(0, 0), (0, 4), (3, 2), (7, 4)]
    assert landmarks((2, 2)) == [(0, 0), (0, 1), (1, 1)]
    assert landmarks((1, 2)) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = [draw(6, 3, row.side, row.side, seed=seed) for seed in (0, 1)]
    if row.name in ("cyclemlp_b1_224", "mvitv2_tiny", "mvit_base_16_224", "mvitv2_small_cls"):
        with pytest.raises(UserError, match="because its last block has one place only; use larger images"):
            localisation(model, images)
        return
    found = localisation(model, images)
    grid = found.maps.shape[1:]
    assert found.maps.shape == (len(landmarks(grid)), *grid)
    assert found.tokens.tolist() == [list(token) for token in landmarks(grid)]
    blind = row.name == "igpt_small_32"  # its first token stands before the first pixel and sees none
    assert np.isnan(found.maps[:blind]).all()
    assert np.isfinite(found.maps[blind:]).all()
    assert 0 <= found.own <= 1 <= found.mean_rank <= grid[0] * grid[1]


def test_what_cannot_be_located_is_said() -> None:
    images = pictures((2, 3))
    with pytest.raises(UserError, match=r"token \(2, 0\) is outside the grid of 2 x 3"):
        localisation(Tokens((2, 3)), images, tokens=[(0, 0), (2, 0)])
    with pytest.raises(UserError, match="no batch of 4 images"):
        localisation(Tokens((2, 3)), [images[0][:3]])
    with pytest.raises(UserError, match="one place only"):
        localisation(Tokens((1, 1)), pictures((1, 1)))
    resnet = randomise(tiny("botnet50_224")).eval()
    with pytest.raises(UserError, match="grid of tokens changes from batch to batch"):
        localisation(resnet, [draw(6, 3, 64, 64), draw(6, 3, 64, 96)])
