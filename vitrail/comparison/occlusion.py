"""Pictures with cells taken away or mixed up. Intriguing Properties of Vision Transformers. Naseer et al., NeurIPS
2021, arXiv 2105.10497.

Idea      drop cells of a grid, at random or by what the model looks at, or deal them out anew, and see how long the
          class is still found: a model that only needs texture survives a shuffle, one that needs shape does not.
Differs   the paper takes its salient cells from one head of DINO ViT-S for every model. Here they come from the model's
          own map, so no other network is needed; the price is that two models do not lose the same pixels. And DINO's
          head finds the foreground, rollout and Grad-CAM what this model uses, be it background.
Caution   a black cell is itself unusual, and part of why CNNs fail: compare with the mean colour.
Shapes    B images, C channels, side S, a grid of g x g cells.

All of it works on pixels before normalisation, for token models and CNNs alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.interpretability.attention import records_attention
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.rollout import rollout_map

MAPPED = 8  # images whose attention is held at a time: all maps of 8 images of ViT-B are 180 MB


def cells(side: int) -> int:
    """Cells along a side of S pixels: of 16 pixels, so 14 x 14 at 224, but never fewer than 4 (or S, below 4 pixels).

    Where S is no multiple, cells differ by a pixel.
    """
    return min(max(side // 16, 4), side)


def random_drop(grid: int, tenths: int, seed: int) -> Tensor:
    """Which cells go: (g * g,) bool, tenths / 10 of them, rounded down. With one seed, more tenths drop those too."""
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(seed))
    dropped = torch.zeros(grid * grid, dtype=torch.bool)
    dropped[order[: tenths * grid * grid // 10]] = True
    return dropped


def salient(maps: Tensor, grid: int, mass: float) -> Tensor:
    """The smallest set of cells that holds a share `mass` of each map, (B, gh, gw) at least 0: (B, g * g) bool.

    The map is averaged over the cells first. Of equal cells the first in reading order count first; a map that is zero
    everywhere counts as even.
    """
    share = F.adaptive_avg_pool2d(maps.double()[:, None], grid).flatten(1)
    total = share.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, share / total.clamp_min(1e-300), 1 / grid**2)
    largest = share.sort(dim=1, descending=True, stable=True)
    before = largest.values.cumsum(dim=1) - largest.values
    taken = before < mass - 1e-9
    return torch.zeros_like(taken).scatter(1, largest.indices, taken)


def drop(images: Tensor, dropped: Tensor, fill: Sequence[float] | float = 0.0) -> Tensor:
    """`images` (B, C, S, S) with the cells of `dropped`, (g * g,) for all or (B, g * g), in the colour `fill`."""
    grid = round(dropped.shape[-1] ** 0.5)
    side = images.shape[-1]
    cell = torch.arange(side, device=images.device) * grid // side
    mask = dropped.to(images.device).reshape(-1, 1, grid, grid)[:, :, cell][:, :, :, cell]
    colour = images.new_tensor([fill] * images.shape[1] if isinstance(fill, float) else fill)
    return torch.where(mask, colour[:, None, None], images)


def shuffled(images: Tensor, order: Tensor) -> Tensor:
    """Cell k of the result (B, C, S, S) is cell order[k] of `images`; `order` (g * g,) is the same for the batch.

    g must divide S.
    """
    grid = round(len(order) ** 0.5)
    parts = images.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # (B, C, g, p, g, p)
    parts = parts.transpose(3, 4).flatten(2, 3)[:, :, order.to(images.device)]  # (B, C, g * g, p, p)
    return parts.unflatten(2, (grid, grid)).transpose(3, 4).flatten(4).flatten(2, 3)


def deal(grid: int, seed: int) -> Tensor:
    """An order of g * g cells for `shuffled`."""
    return torch.randperm(grid * grid, generator=torch.Generator().manual_seed(seed))


def own_map(model: nn.Module, images: Tensor) -> tuple[Tensor, str]:
    """What the model looks at in normalised images, (B, gh, gw) at least 0, and how that was found: attention rollout
    where it attends over all tokens, else Grad-CAM for the predicted class.

    Raises UserError where the model gives neither.
    """
    method = "rollout" if records_attention(model, images[:1]) else "gradcam"
    look = rollout_map if method == "rollout" else gradcam
    return torch.cat([look(model, part).detach() for part in images.split(MAPPED)]), method
