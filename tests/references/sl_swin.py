"""The small-data Swin written out: window by window, each token looked up where it lies, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference
from references.sl_vit import Get, getter, linear, norm, pixels, positions, shifted_tokens


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Sizes and ideas as ours."""
    config, grid = model.config, model.grid

    def call(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        get = getter(parameters)
        tokens = embed(images.double(), get, config)
        tokens = tokens + positions(get("absolute_pos_embed"), grid, images.shape[-2:], config.patch_size, tokens=0)
        x = tokens.unflatten(1, (images.shape[2] // config.patch_size, -1))
        for stage, depth in enumerate(config.depths):
            if stage:
                x = merge(x, get, f"layers.{stage - 1}.downsample", config.spt)
            side = grid[0] // 2**stage
            for index in range(depth):
                shift = config.window_size // 2 if index % 2 and side > config.window_size else 0
                name, window = f"layers.{stage}.blocks.{index}", min(config.window_size, side)
                y = norm(x, get, f"{name}.norm1")
                x = x + attend(y, get, f"{name}.attn", config.num_heads[stage], window, shift, config.lsa)
                y = F.gelu(linear(norm(x, get, f"{name}.norm2"), get, f"{name}.mlp.fc1"))
                x = x + linear(y, get, f"{name}.mlp.fc2")
        return linear(norm(x, get, "norm").mean((1, 2)), get, "head").to(images.dtype)

    return call


def embed(images: Tensor, get: Get, config) -> Tensor:
    if config.spt:
        return shifted_tokens(images, config.patch_size, get, "patch_embed.merging")
    weight = get("patch_embed.proj.weight").permute(0, 2, 3, 1).flatten(1)
    tokens = pixels(images, config.patch_size) @ weight.T + get("patch_embed.proj.bias")
    return norm(tokens, get, "patch_embed.norm")


def merge(x: Tensor, get: Get, name: str, spt: bool) -> Tensor:
    rows = x.shape[1] // 2
    if spt:
        return shifted_tokens(x.permute(0, 3, 1, 2), 2, get, f"{name}.merging").unflatten(1, (rows, -1))
    four = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    return norm(four, get, f"{name}.norm") @ get(f"{name}.reduction.weight").T


def attend(x: Tensor, get: Get, name: str, heads: int, window: int, shift: int, lsa: bool) -> Tensor:
    """Every window of the rolled and padded map on its own; a token is (row, column) there."""
    height, width, dim = x.shape[1:]
    tau = get(f"{name}.scale")[:, None, None] if lsa else (dim // heads) ** -0.5
    table = get(f"{name}.relative_position_bias_table")
    padded = [-(-length // window) * window for length in (height, width)]
    out = torch.zeros_like(x)
    for top in range(0, padded[0], window):
        for left in range(0, padded[1], window):
            row, column = (torch.arange(window**2) // window, torch.arange(window**2) % window)
            offset = (row[:, None] - row + window - 1) * (2 * window - 1) + column[:, None] - column + window - 1
            row, column = row + top, column + left
            real = (row < height) & (column < width)
            y, z = (row + shift) % height, (column + shift) % width
            qkv = linear(x[:, y, z] * real[:, None], get, f"{name}.qkv").unflatten(-1, (3, heads, -1))
            logits = torch.einsum("bnhd,bmhd->bhnm", qkv[:, :, 0], qkv[:, :, 1]) * tau
            logits = logits + table[offset].permute(2, 0, 1)
            region = part(row, padded[0], window, shift) * 3 + part(column, padded[1], window, shift)
            logits = logits - 100.0 * (region[:, None] != region)
            if lsa:
                logits[:, :, range(window**2), range(window**2)] = -torch.inf
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
            answer = torch.einsum("bhnm,bmhd->bnhd", weights, qkv[:, :, 2]).flatten(2)
            out[:, y[real], z[real]] = linear(answer, get, f"{name}.proj")[:, real]
    return out


def part(place: Tensor, length: int, window: int, shift: int) -> Tensor:
    """0 before the last window, 1 in it, 2 in what the roll brought from the other end."""
    return (place >= length - window).long() + (place >= length - shift) if shift else torch.zeros_like(place)
