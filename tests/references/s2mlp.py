"""S2-MLP from the paper's equations, in float64, cell by cell: a map is a dict (row, column) -> (B, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references import Reference

Cells = dict[tuple[int, int], Tensor]
Parameters = dict[str, Tensor]

# Where a quarter of the channels comes from, in steps down and right: it moves down, up, right, left.
SOURCES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config

    def logits(parameters: Parameters, images: Tensor) -> Tensor:
        p = {name: value.double() for name, value in parameters.items()}
        cells = patches(p, "patch_embed.proj", as_cells(images.double()), config.patch_size)
        cells = {at: norm(p, "norm_pre", x) for at, x in cells.items()}
        for i in range(config.depth):
            name = f"blocks.{i}"
            inner = {at: gelu(linear(p, f"{name}.attn.fc1", norm(p, f"{name}.norm1", x))) for at, x in cells.items()}
            moved = shifted(inner, SOURCES)
            cells = {at: x + linear(p, f"{name}.attn.fc2", moved[at]) for at, x in cells.items()}
            cells = {at: x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x)) for at, x in cells.items()}
        return linear(p, "head", sum(cells.values()) / len(cells)).to(images.dtype)

    return logits


def as_cells(images: Tensor) -> Cells:
    """(B, C, H, W) -> its pixels."""
    return {(i, j): images[:, :, i, j] for i in range(images.shape[2]) for j in range(images.shape[3])}


def patches(p: Parameters, name: str, cells: Cells, size: int) -> Cells:
    """Each size x size block of cells times its weights (D, C, size, size), by a sum over the block."""
    out = {}
    height, width = (1 + max(at[axis] for at in cells) for axis in (0, 1))
    for i in range(height // size):
        for j in range(width // size):
            total = p[f"{name}.bias"]
            for y in range(size):
                for x in range(size):
                    total = total + cells[i * size + y, j * size + x] @ p[f"{name}.weight"][:, :, y, x].T
            out[i, j] = total
    return out


def shifted(cells: Cells, sources: tuple[tuple[int, int], ...]) -> Cells:
    """Every quarter of the channels from its source cell, or from the cell itself where there is none."""
    out = {}
    for (i, j), own in cells.items():
        quarters = []
        for k, (down, right) in enumerate(sources):
            channels = slice(k * own.shape[1] // 4, (k + 1) * own.shape[1] // 4)
            quarters.append(cells.get((i + down, j + right), own)[:, channels])
        out[i, j] = torch.cat(quarters, dim=1)
    return out


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def mlp(p: Parameters, name: str, x: Tensor) -> Tensor:
    return linear(p, f"{name}.fc2", gelu(linear(p, f"{name}.fc1", x)))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x * 0.5**0.5))


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    """A layer norm, or an affine map: the parameters say which."""
    if f"{name}.alpha" in p:
        return x * p[f"{name}.alpha"][0, 0] + p[f"{name}.beta"][0, 0]
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]
