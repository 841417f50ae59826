"""Where a token is: learned position embeddings, their resizing to another grid, and tables of relative positions."""

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


def relative_index(height: int, width: int) -> Tensor:
    """For every query and key of a window of height x width positions, the row of a table of offsets: (N, N), long.

    The table has (2 height - 1)(2 width - 1) rows, offsets query - key in reading order (Swin, section 3.2).
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None, :] + height - 1
    across = columns[:, None] - columns[None, :] + width - 1
    return down * (2 * width - 1) + across


def relative_logits(q: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]) -> Tensor:
    """What relative positions add to the logits of global attention over H x W: (B, h, N, d) -> (B, h, N, N).

    logit[i, j] = q_i . rel_h[y_j - y_i + H - 1] + q_i . rel_w[x_j - x_i + W - 1], with tables (2H - 1, d) and
    (2W - 1, d) (attention-augmented convolution, section 3.2). The tables are gathered, which is cheap beside q k^T.
    """
    height, width = grid
    rows, columns = torch.arange(height, device=q.device), torch.arange(width, device=q.device)
    down = rel_h[rows[None, :] - rows[:, None] + height - 1]  # (H, H, d): query row, key row
    across = rel_w[columns[None, :] - columns[:, None] + width - 1]
    q = q.unflatten(2, grid)
    by_row = torch.einsum("bhyxd,yzd->bhyxz", q, down)
    by_column = torch.einsum("bhyxd,xzd->bhyxz", q, across)
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
