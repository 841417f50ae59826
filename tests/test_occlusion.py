"""Cells dropped and shuffled: against loops over pixels, and what must hold whatever the grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor

from vitrail.comparison.occlusion import cells, deal, drop, own_map, random_drop, salient, shuffled


def pixels(images: int, side: int) -> Tensor:
    return torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_cells_are_of_16_pixels_or_a_quarter_of_the_side() -> None:
    assert [cells(side) for side in (224, 384, 96, 64, 32, 8, 3)] == [14, 24, 6, 4, 4, 4, 3]


@pytest.mark.parametrize("grid", [4, 14])
def test_random_cells_are_counted_as_the_authors_count(grid: int) -> None:
    drawn = [random_drop(grid, tenths, seed=5) for tenths in range(11)]
    assert [int(one.sum()) for one in drawn] == [k * grid * grid // 10 for k in range(11)]
    assert all(not bool((fewer & ~more).any()) for fewer, more in itertools.pairwise(drawn)), "nested"
    assert torch.equal(drawn[5], random_drop(grid, 5, seed=5))
    assert not torch.equal(drawn[5], random_drop(grid, 5, seed=6))


@pytest.mark.parametrize(("side", "grid"), [(8, 4), (10, 4), (12, 3), (7, 5)])
def test_drop_pixel_by_pixel(side: int, grid: int) -> None:
    x = pixels(3, side)
    dropped = torch.rand(3, grid * grid, generator=torch.Generator().manual_seed(1)) < 0.4
    colour = (0.1, 0.2, 0.3)
    expected = x.clone()
    for i in range(3):
        for row in range(side):
            for column in range(side):
                if dropped[i, (row * grid // side) * grid + column * grid // side]:
                    expected[i, :, row, column] = torch.tensor(colour)
    assert torch.equal(drop(x, dropped, colour), expected)
    assert torch.equal(drop(x, dropped[0])[0], torch.where(expected[0] == x[0], x[0], 0.0))
    assert torch.equal(drop(x, dropped[:1].expand(3, -1)), drop(x, dropped[0])), "one set for the whole batch"


def test_no_cell_or_all() -> None:
    x = pixels(4, 8)
    assert torch.equal(drop(x, random_drop(4, 0, 0)), x)
    assert torch.equal(
        drop(x, random_drop(4, 10, 0), (0.1, 0.2, 0.3)), torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1) + 0 * x
    )
    model = randomise(tiny("vit_tiny_patch16_224")).eval()
    with torch.no_grad():
        blind = model(drop(pixels(4, 32), random_drop(4, 10, 0)))
    assert torch.equal(blind, blind[:1].expand(4, -1)), "one answer for all"


# ---------------------------------------------------------------------- salient cells


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=16, max_size=16), st.integers(1, 10))
def test_salient_cells_are_the_fewest_that_hold_the_mass(values: list[int], tenths: int) -> None:
    heat = torch.tensor(values, dtype=torch.float64).view(1, 4, 4)
    taken = salient(heat, 4, tenths / 10)[0]
    share = np.array(values) / sum(values) if sum(values) else np.full(16, 1 / 16)
    most = np.sort(share)[::-1].cumsum()
    fewest = int(np.argmax(most >= tenths / 10 - 1e-9)) + 1
    assert int(taken.sum()) == fewest
    assert share[taken.numpy()].sum() == pytest.approx(most[fewest - 1])


def test_salient_cells_on_another_grid() -> None:
    heat = torch.zeros(2, 2, 2)
    heat[0, 0, 1] = 3.0
    heat[1, 1] = 1.0
    taken = salient(heat, 4, 0.9).view(2, 4, 4)
    assert taken[0].nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert not taken[1, :2].any()
    assert int(taken[1].sum()) == 8, "nine tenths of eight equal cells"
    assert not salient(heat, 4, 0.0).any()
    fine = torch.arange(36.0).view(1, 6, 6)
    assert salient(fine, 3, 0.2).nonzero().tolist() == [[0, 8]], "the mean of the last four is the largest"


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture_has_a_map_of_its_own(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    heat, method = own_map(model, torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0)))
    assert len(heat) == 2
    assert heat.isfinite().all()
    assert (heat >= 0).all()
    assert not heat.requires_grad
    assert method in ("rollout", "gradcam")
    assert row.maps or method == "gradcam"


# ---------------------------------------------------------------------- shuffle


@pytest.mark.parametrize("grid", [1, 2, 3, 6])
def test_shuffle_cell_by_cell(grid: int) -> None:
    x, order = pixels(2, 12), deal(grid, 7)
    size = 12 // grid
    expected = torch.empty_like(x)
    for k, source in enumerate(order.tolist()):
        (down, across), (high, wide) = divmod(k, grid), divmod(source, grid)
        cell = x[:, :, high * size : (high + 1) * size, wide * size : (wide + 1) * size]
        expected[:, :, down * size : (down + 1) * size, across * size : (across + 1) * size] = cell
    mixed = shuffled(x, order)
    assert torch.equal(mixed, expected)
    assert torch.equal(shuffled(mixed, order.argsort()), x), "dealt back"
    assert torch.equal(shuffled(x, torch.arange(grid * grid)), x)


def test_an_order_is_drawn_by_its_seed() -> None:
    assert torch.equal(deal(8, 3), deal(8, 3))
    assert not torch.equal(deal(8, 3), deal(8, 4))
    assert deal(8, 3).sort().values.tolist() == list(range(64))
