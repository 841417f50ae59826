"""Where a token is: learned position embeddings and their resizing to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position(
    pos_embed: Tensor, grid: tuple[int, int], num_prefix: int, old_grid: tuple[int, int] | None = None
) -> Tensor:
    """(1, T + g*g, D) -> (1, T + H*W, D) for a grid of H x W patches; the T = num_prefix first entries are kept.

    Bicubic with antialiasing, as timm resizes released weights; `old_grid` is square unless given. DeiT (section 3)
    prefers bicubic because bilinear shrinks the norm of the vectors, and networks then drop before fine-tuning.
    """
    if old_grid is None:
        side = round((pos_embed.shape[1] - num_prefix) ** 0.5)
        old_grid = side, side
    if grid == old_grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    image = patches.float().unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, D, g, g)
    image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(patches.dtype)], dim=1)
