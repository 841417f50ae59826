"""Random erasing in two halves: rectangles and noise are drawn with an image, and pasted into the normalised batch.

One rectangle of a random share of the area, aspect 0.3 to 3.3, filled with unit-normal noise per pixel or with 0, which
is the mean colour by then (Zhong et al., 2020, arXiv 1708.04896). The batch between is uint8, a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2


class Patch(NamedTuple):
    """What is pasted into an image (C, H, W)."""

    top: int
    left: int
    fill: Tensor
    """(C, h, w) float32."""


class Patches(NamedTuple):
    """The patches of a batch in two tensors, since each costs a file on its way between processes."""

    places: Tensor
    """(K, 5) long: number of the image in its batch, top, left, height, width."""
    fills: Tensor
    """The patches' pixels (C, h, w), one after another, float32."""


class Erasing:
    """torchvision's v2.RandomErasing, drawn: the same random numbers make the same patch."""

    def __init__(self, probability: float, scale: tuple[float, float], noise: bool) -> None:
        self.erasing = v2.RandomErasing(probability, scale, (0.3, 3.3), value="random" if noise else 0.0)

    def draw(self, channels: int, height: int, width: int) -> Patch | None:
        """A patch for an image of this shape, or None. The random numbers are torch's global ones."""
        if torch.rand(1).item() >= self.erasing.p:
            return None
        drawn = self.erasing.make_params([torch.empty(()).expand(channels, height, width)])
        if drawn["v"] is None:  # of ten, no rectangle was small enough
            return None
        return Patch(drawn["i"], drawn["j"], drawn["v"].expand(channels, drawn["h"], drawn["w"]))


def together(patches: Sequence[Patch | None]) -> Patches:
    """The patches of a batch, one or None for each image."""
    drawn = [(k, patch) for k, patch in enumerate(patches) if patch is not None]
    places = [[k, patch.top, patch.left, *patch.fill.shape[1:]] for k, patch in drawn]
    fills = [patch.fill.flatten() for _, patch in drawn]
    return Patches(torch.tensor(places, dtype=torch.long).view(-1, 5), torch.cat(fills) if fills else torch.empty(0))


def paste(images: Tensor, patches: Patches) -> None:
    """Write the patches into the batch (B, C, H, W), float32."""
    fills, at = patches.fills.to(images.device, non_blocking=True), 0
    for k, top, left, height, width in patches.places.tolist():
        region = images[k, :, top : top + height, left : left + width]
        region.copy_(fills[at : at + region.numel()].view(region.shape))
        at += region.numel()
