"""Whether tokens keep their place. Do Vision Transformers See Like Convolutional Neural Networks? Raghu et al.,
NeurIPS 2021, arXiv 2108.08810, figure 9.

Idea      a token of the last block that still stands for its patch is similar, over many images, to the pixels there
          and nowhere else: CKA between the token and the pixels of every place, one map a token.
Expect    sharp maps in a ViT with a class token; tokens at the edge resemble the whole edge; broad maps where tokens
          are averaged at the end, and in late stages of CNNs.
Caution   against raw pixels CKA is low: scale each map by itself. Pixels are mostly mean colour, so the map follows
          brightness, and neighbouring patches are alike anyway. Random crops and flips move what is at a place.
Cost      one pass, then P^2 n^2 for P places and batches of n images; memory about 256 MB above the pass, whatever n,
          but for n of 500 and more at the price of time: batches of 128 do, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.interpretability.similarity import MinibatchCKA, gram
from vitrail.interpretability.stream import Flow, tapped, trunk

MEMORY = 256 * 2**20
Grid = tuple[int, int]


class Localisation(NamedTuple):
    """Where on the picture the tokens of the last block have their like; P = gh gw places."""

    tokens: NDArray[np.int64]
    """(K, 2): row and column of the tokens whose maps these are."""
    maps: NDArray[np.float64]
    """(K, gh, gw): unbiased CKA of each with the pixels of every place; nan where token or pixels never vary."""
    sharpness: NDArray[np.float64]
    """(K,): how many standard deviations the largest value of a map lies above its mean."""
    own: float
    """Share of all P tokens most similar to their own place, by chance 1 / P; a token with nan there does not count."""
    mean_rank: float
    """Mean rank of the own place among all, over all P tokens: 1 is best, by chance (P + 1) / 2."""
    images: int
    """How many images count."""
    dropped: int
    """How many do not, because their batch is smaller than the others."""


def localisation(
    model: nn.Module, batches: Iterable[Tensor], *, tokens: Sequence[tuple[int, int]] | None = None
) -> Localisation:
    """Localisation of the tokens of the last block of `model`, in eval mode, on its grid of places.

    `batches` are normalised images (n, C, H, W), all alike. `tokens` are the (row, column) whose maps are given, None
    for a corner, the middle of an edge, between edge and centre, and the centre; `own` and `mean_rank` count all.
    Raises UserError for a last block with one place, and for a token outside the grid.
    """
    grid: Grid = (0, 0)
    size = step = seen = 0
    sums: dict[tuple[int, int], MinibatchCKA] = {}
    for images in batches:
        seen += len(images)
        if len(images) <= 3 or size not in (0, len(images)):
            continue
        features = _last(model, images)
        if not sums:
            size, grid = len(images), _shape(model, features)
            step = max(1, MEMORY // (32 * size**2))  # two Gram matrices in float32 and float64 each, and a square
            starts = range(0, grid[0] * grid[1], step)
            sums = {(row, column): MinibatchCKA() for row in starts for column in starts}
        elif _shape(model, features) != grid:
            raise UserError("localisation: the grid of tokens changes from batch to batch; give images of one shape")
        _add(sums, step, features.tokens.transpose(0, 1), patches(images, grid))
    if not sums:
        raise UserError("localisation has seen no batch of 4 images or more; give larger batches, all of one size")
    return _measured(_joined(sums), grid, _chosen(tokens, grid), seen, sums[0, 0].images)


def patches(images: Tensor, grid: Grid) -> Tensor:
    """The pixels of every place of `grid` in images (B, C, H, W): (P, B, C h w), in reading order.

    Images that the grid does not divide evenly are enlarged to the next size that it does, bilinearly.
    """
    size = tuple(-(-side // cells) * cells for side, cells in zip(images.shape[-2:], grid, strict=True))
    if size != images.shape[-2:]:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    cells = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, gh, h, gw, w)
    return cells.permute(2, 4, 0, 1, 3, 5).flatten(3).flatten(0, 1)


def landmarks(grid: Grid) -> list[tuple[int, int]]:
    """Corner, middle of the upper edge, between edge and centre, centre; fewer on a grid where they coincide."""
    rows, columns = grid
    return list(dict.fromkeys([(0, 0), (0, columns // 2), (rows // 4, columns // 4), (rows // 2, columns // 2)]))


def _last(model: nn.Module, images: Tensor) -> Flow:
    seen: list[Flow] = []
    with torch.no_grad(), tapped(model, lambda _name, flow: seen.append(flow), trunk(model)[-1:]):
        model(images)
    return seen[-1]


def _shape(model: nn.Module, features: Flow) -> Grid:
    high, wide = features.grid.shape[-2:]
    if high * wide == 1:
        raise not_available("localisation", model, "its last block has one place only", "larger images")
    return high, wide


def _add(sums: dict[tuple[int, int], MinibatchCKA], step: int, features: Tensor, pixels: Tensor) -> None:
    """Compare features (P, n, D) with pixels (P, n, q), a block of the P x P table at a time."""
    starts = range(0, len(pixels), step)
    for column in starts:
        there = gram(pixels[column : column + step])
        for row in starts:
            sums[row, column].add(gram(features[row : row + step]), there)


def _joined(sums: dict[tuple[int, int], MinibatchCKA]) -> NDArray[np.float64]:
    starts = sorted({row for row, _ in sums})
    return np.block([[sums[row, column].values() for column in starts] for row in starts])


def _chosen(tokens: Sequence[tuple[int, int]] | None, grid: Grid) -> NDArray[np.int64]:
    chosen = landmarks(grid) if tokens is None else tokens
    for row, column in chosen:
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise UserError(f"localisation: token ({row}, {column}) is outside the grid of {grid[0]} x {grid[1]}")
    return np.array(chosen, np.int64).reshape(-1, 2)


def _measured(
    values: NDArray[np.float64], grid: Grid, tokens: NDArray[np.int64], seen: int, images: int
) -> Localisation:
    own = values.diagonal()[:, None]
    rank = 1 + (values > own).sum(1) + ((values == own).sum(1) - 1) / 2  # equal values share their ranks
    rank = rank[np.isfinite(own[:, 0])]
    maps = values[tokens @ (grid[1], 1)]
    varying = np.ma.masked_invalid(maps)
    sharpness = (varying.max(1) - varying.mean(1)) / varying.std(1)
    return Localisation(
        tokens,
        maps.reshape(-1, *grid),
        sharpness.filled(np.nan),
        float((rank == 1).mean()) if len(rank) else np.nan,
        float(rank.mean()) if len(rank) else np.nan,
        images,
        seen - images,
    )
