"""Mean attention distance and attention entropy of every head, by depth. An Image Is Worth 16x16 Words. Dosovitskiy et
al., ICLR 2021, arXiv 2010.11929, figures 7 and 11; Do Vision Transformers See Like Convolutional Neural Networks?
Raghu et al., NeurIPS 2021, arXiv 2108.08810, figure 3.

Idea      how far from a place the places lie that it attends to: what a kernel's size is to a convolution. Entropy says
          over how many; a head that attends to one far place has a large distance and no entropy.
Differs   from probing-vits: what goes to the class token is taken out and rows are scaled to sum to 1 again; without
          that a head that looks at the class token appears local. The share taken out is reported.
Caution   uniform attention has a distance too, and a place at the border more of it: compare with `uniform_distance`.
Cost      one pass, one map in memory at a time, B h N M operations a site.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.attention import to_grid
from vitrail.interpretability.available import not_available
from vitrail.interpretability.still import evaluating
from vitrail.layers.attention import Maps, Places, global_places, probing, record

MASKED = 1e-20
"""A weight below this in all heads and images is a masked key's: masks of -100 leave some 1e-44, not 0."""

Heads = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Means over images and over the places that ask, by head (h,); a list has one entry a site, in order of the pass.

    Keys count where they have a place and are not masked; rows are scaled to sum to 1 over them.
    """

    layers: list[str]
    """The names of the sites."""
    distance: list[Heads]
    """Pixels of the input image."""
    uniform_distance: list[float]
    """The distance if all keys of a place had the same weight."""
    entropy: list[Heads]
    """Nats."""
    entropy_share: list[Heads]
    """Entropy over that of uniform attention, in [0, 1]; 0 where there is one key only."""
    prefix_mass: list[Heads]
    """What places give to keys without a place, in [0, 1]: class and register tokens, padding."""
    cls_entropy: dict[str, Heads]
    """Nats, over the places, by site: the row of the class token, or of a learned query, where one asks."""
    left_out: list[str]
    """Sites in which no place asks: a class token or a learned query alone, or channels."""
    images: int
    """How many were looked at."""


class Measure(NamedTuple):
    """One site's means over images and places, each (h,) float64; NaN where nobody asks."""

    distance: Tensor
    entropy: Tensor
    prefix_mass: Tensor
    uniform_distance: Tensor
    uniform_entropy: Tensor
    cls_entropy: Tensor


def attention_statistics(model: nn.Module, batches: Iterable[Tensor]) -> Statistics:
    """Distance and entropy of every head of `model` over `batches` of normalised images (B, C, H, W) on its device.

    Every site counts that says where its tokens lie, in windows, rows, neighbourhoods or over pooled keys; a pixel is
    one of the input, a cell its centre. The model is in eval mode meanwhile. Raises UserError where no place attends,
    and without images.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: probes would be traced
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluating(model):
        for images in batches:
            count += len(images)
            for name, found in _one_pass(model, images).items():
                sums[name] = sums.get(name, 0) + torch.stack(found) * len(images)
    if not count:
        raise UserError("distance: there are no images to look at; give at least one batch")
    means = {name: Measure(*(total / count).cpu()) for name, total in sums.items()}
    placed = {name: mean for name, mean in means.items() if not mean.uniform_distance.isnan().any()}
    read = {name: mean.cls_entropy.numpy() for name, mean in means.items() if not mean.cls_entropy.isnan().any()}
    if not placed:
        problem = "only a token without a place attends" if means else "it has no softmax attention between tokens"
        raise not_available("distance", model, problem)
    return Statistics(
        layers=list(placed),
        distance=[mean.distance.numpy() for mean in placed.values()],
        uniform_distance=[float(mean.uniform_distance[0]) for mean in placed.values()],
        entropy=[mean.entropy.numpy() for mean in placed.values()],
        entropy_share=[(mean.entropy / mean.uniform_entropy.clamp_min(1e-12)).numpy() for mean in placed.values()],
        prefix_mass=[mean.prefix_mass.numpy() for mean in placed.values()],
        cls_entropy=read,
        left_out=[name for name in means if name not in placed],
        images=count,
    )


def distances(places: Places, size: tuple[int, int]) -> Tensor:
    """From the centre of each query's cell to that of each key's, in pixels of an image of `size` H x W: (G, N, M).

    Where a token has no place the number means nothing.
    """
    asking = _centres(places.queries, (places.query_grid,), size)  # (G, N, 2)
    asked = _centres(places.keys, places.key_grids, size)  # (G or 1, N or 1, M, 2)
    return (asking[:, :, None] - asked).norm(dim=-1)


def measure(weights: Tensor, places: Places, size: tuple[int, int]) -> Measure:
    """The statistics of one site: (B * G, h, N, M), rows summing to 1, on images of `size` H x W pixels."""
    places = places._replace(queries=places.queries.to(weights.device), keys=places.keys.to(weights.device))
    weights = weights.unflatten(0, (-1, len(places.queries)))  # (B, G, h, N, M)
    valid = (places.keys >= 0) & ~(weights.amax((0, 2)) <= MASKED)  # (G, N, M)
    asks = (places.queries >= 0) & valid.any(-1)
    apart = distances(places, size).to(weights.dtype)
    rows = _rows(weights, valid, apart)
    distance, entropy, mass = _mean(rows, asks)
    evenly = _mean(_rows(valid[None, :, None].to(weights.dtype), valid, apart), asks).expand(-1, len(distance))
    reads = (places.queries[0, 0] < 0) & valid[0, 0].any()  # prefix tokens come first; padding never does
    cls_entropy = rows[1, :, 0, :, 0].double().mean(0).where(reads, torch.nan)
    return Measure(distance, entropy, mass, evenly[0], evenly[1], cls_entropy)


def _centres(cells: Tensor, grids: tuple[tuple[int, int], ...], size: tuple[int, int]) -> Tensor:
    """Row and column in pixels of the middle of `cells` (...), which count through `grids`: (..., 2) float64."""
    parts = []
    for grid in grids:
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) * (side / n) for n, side in zip(grid, size, strict=True)]
        parts.append(torch.cartesian_prod(*axes))
    return torch.cat(parts).to(cells.device)[cells.clamp(min=0)]


def _rows(weights: Tensor, valid: Tensor, apart: Tensor) -> Tensor:
    """Distance, entropy and what goes elsewhere, of each row of (B, G, h, N, M): (3, B, G, h, N)."""
    kept = weights * valid[:, None]
    share = kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
    elsewhere = (weights * ~valid[:, None]).sum(-1)
    return torch.stack([(share * apart[:, None]).sum(-1), torch.special.entr(share).sum(-1), elsewhere])


def _mean(rows: Tensor, asks: Tensor) -> Tensor:
    """Over images and the queries that `asks` (G, N) names: (3, B, G, h, N) -> (3, h)."""
    return (rows.double() * asks[:, None]).sum((1, 2, 4)) / (rows.shape[1] * asks.sum())


@torch.no_grad()
def _one_pass(model: nn.Module, images: Tensor) -> dict[str, Measure]:
    """`measure` of every site. A site may say where its tokens lie after it attended, so a map is reduced, and let go,
    when the next one is made."""
    found: dict[str, Measure] = {}

    def reduce(maps: Maps, names: list[str]) -> None:
        for name in names:
            weights = maps.pop(name)
            places = maps.places.get(name) or _everywhere(weights, model, images)
            found[name] = measure(weights, places, (images.shape[-2], images.shape[-1]))

    with record(model) as maps:

        def look(_site: nn.Module, weights: Tensor) -> Tensor:
            reduce(maps, list(maps)[:-1])
            return weights

        with probing(look):
            model(images)
    reduce(maps, list(maps))
    return found


def _everywhere(weights: Tensor, model: nn.Module, images: Tensor) -> Places:
    """The places of a site that attends over all tokens: patches after prefix tokens; a lone query lies nowhere."""
    queries, keys = weights.shape[-2:]
    nowhere = torch.full((1, queries), -1)
    try:
        high, wide = to_grid(torch.arange(keys), model, images).shape
    except UserError:  # channels, for instance: the site is named as left out
        return Places(nowhere, torch.full((1, 1, keys), -1), (1, 1), ((1, 1),))
    places = global_places((high, wide), (high, wide), keys - high * wide)
    return places if queries == keys else places._replace(queries=nowhere)
