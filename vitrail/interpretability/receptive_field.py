"""Effective receptive fields. Understanding the Effective Receptive Field in Deep Convolutional Neural Networks. Luo et
al., NeurIPS 2016, arXiv 1701.04128; of transformers: Do Vision Transformers See Like Convolutional Neural Networks?
Raghu et al., NeurIPS 2021, arXiv 2108.08810, figure 6.

Idea      how far a block sees is which pixels move its features at the centre: the absolute gradient of the centre
          place's features with respect to the picture, averaged over images.
Reading   the gradient of a plain sum of channels vanishes behind a LayerNorm, whose outputs add up to a constant. Here
          each channel has a random sign, a few draws of them: up to a factor between 0.71 and 1 the Euclidean norm of
          the channels' gradients. An even grid has four middle places; each has signs of its own, so that none
          cancels another.
Caution   the skip path leaves a bright spot at the centre of every map. Zero padding leaves marks at the borders, and
          few images show their objects: take 30 or more. Maps of two blocks compare in shape, not in height.
Cost      one forward a batch, one backward a block and draw; the graph is freed from the top as the blocks are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.interpretability.still import frozen
from vitrail.interpretability.stream import Flow, tapped, trunk


class ReceptiveFields(NamedTuple):
    """What the centre of each block's grid depends on: L blocks, images of H x W pixels."""

    layers: list[str]
    """Names of the blocks."""
    maps: NDArray[np.float64]
    """(L, H, W), at least 0: mean over images and draws of the absolute gradient, summed over input channels."""
    radius: NDArray[np.float64]
    """(L,) pixels: root of the mean squared distance from the image's centre, weighted by the map."""
    side50: NDArray[np.float64]
    """(L,) side of the smallest centred square that holds half of the map, as a share of the image's side."""
    images: int


def receptive_fields(
    model: nn.Module, batches: Iterable[Tensor], *, layers: Sequence[int] | None = None, draws: int = 2
) -> ReceptiveFields:
    """The receptive fields of the blocks `layers` of `trunk` (negative: from the top; None: all), in float32.

    `batches` are normalised images (B, C, H, W), all of one size. The signs are the same for all images, so that the
    result does not depend on how they are batched. The model is run in eval mode and left as it was, without gradients.
    Raises UserError for a block that does not exist, no images, no draws, and a model that no gradient passes through.
    """
    names = _chosen(model, layers)
    if draws < 1:
        raise UserError(f"receptive_fields: draws is {draws}; give 1 or more")
    total: Tensor | None = None
    images = 0
    with frozen(model):
        for batch in batches:
            heat = torch.stack(list(_gradients(model, batch, names, draws)))
            if total is not None and heat.shape != total.shape:
                raise UserError("receptive_fields: the images differ in size; give batches of one size")
            total = heat if total is None else total + heat
            images += len(batch)
    if total is None or not images:
        raise UserError("receptive_fields: there are no images; give at least one batch")
    maps = (total / (images * draws)).cpu().numpy()
    return ReceptiveFields(names, maps, radius(maps), side_of_half(maps), images)


def radius(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(sum E r^2 / sum E) in pixels, r the distance from the centre of the image: (L, H, W) -> (L,)."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in maps.shape[-2:])
    squared = rows[:, None] ** 2 + columns**2
    return np.sqrt((maps * squared).sum((-2, -1)) / maps.sum((-2, -1)).clip(min=np.finfo(float).tiny))


def side_of_half(maps: NDArray[np.float64], share: float = 0.5) -> NDArray[np.float64]:
    """Side of the smallest centred rectangle of the image's proportions with `share` of E in it, as a share of the
    image's: (L, H, W) -> (L,). Of a uniform map it is 0.71 for a half."""
    rows, columns = (np.abs(2 * np.arange(side) + 1 - side) + 1 for side in maps.shape[-2:])
    sides = np.maximum(rows[:, None] / maps.shape[-2], columns / maps.shape[-1]).ravel()
    order = np.argsort(sides, kind="stable")
    held = maps.reshape(len(maps), -1)[:, order].cumsum(1)
    first = (held >= share * held[:, -1:] * (1 - 1e-12)).argmax(1)
    return sides[order][first]


def _chosen(model: nn.Module, layers: Sequence[int] | None) -> list[str]:
    names = trunk(model)
    outside = [layer for layer in layers or () if not -len(names) <= layer < len(names)]
    if outside:
        raise UserError(f"receptive_fields: there is no block {outside[0]}; the model has blocks 0 to {len(names) - 1}")
    return names if layers is None else [names[layer] for layer in layers]


def _gradients(model: nn.Module, images: Tensor, names: list[str], draws: int) -> Iterator[Tensor]:
    """Of each block the sum over images and draws of its map, (H, W) float64, in the order of `names`."""
    centres: dict[str, Tensor] = {}

    def look(name: str, flow: Flow) -> None:
        high, wide = (slice((side - 1) // 2, side // 2 + 1) for side in flow.grid.shape[-2:])
        centres[name] = flow.grid[:, :, high, wide].float().clone()  # what follows may write into it

    pixels = images.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False), tapped(model, look, names):
        model(pixels)
    heat: dict[str, Tensor] = {}
    for name in reversed(list(centres)):  # from the top: what only higher blocks needed goes with their centres
        heat[name] = _heat(centres.pop(name), pixels, draws, model)
    yield from (heat[name] for name in names)


def _heat(centre: Tensor, pixels: Tensor, draws: int, model: nn.Module) -> Tensor:
    if not centre.requires_grad:
        raise not_available("receptive field", model, "no gradient passes from its features to the pixels")
    heat = pixels.new_zeros(pixels.shape[-2:], dtype=torch.float64)
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        signs = torch.randint(0, 2, centre.shape[1:], generator=generator).to(centre) * 2 - 1
        (gradient,) = torch.autograd.grad((centre * signs).sum(), pixels, retain_graph=True)
        heat += gradient.double().abs().sum((0, 1))
    return heat
