"""The small-data ViT written out: patch by patch, query by query, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference

Get = Callable[[str], Tensor]


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Sizes and ideas as ours."""
    config, grid = model.config, model.grid

    def call(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        get = getter(parameters)
        x = images.double()
        if config.spt:
            x = shifted_tokens(x, config.patch_size, get, "to_patch_embedding.merging")
        else:
            x = linear(pixels(x, config.patch_size), get, "to_patch_embedding.1")
        x = torch.cat([get("cls_token").expand(len(x), -1, -1), x], dim=1)
        x = x + positions(get("pos_embedding"), grid, images.shape[-2:], config.patch_size)
        for layer in range(config.depth):
            attention, mlp = (f"transformer.layers.{layer}.{branch}" for branch in (0, 1))
            x = x + attend(norm(x, get, f"{attention}.norm"), get, f"{attention}.fn", config)
            hidden = F.gelu(linear(norm(x, get, f"{mlp}.norm"), get, f"{mlp}.fn.net.0"))
            x = x + linear(hidden, get, f"{mlp}.fn.net.3")
        return linear(norm(x[:, 0], get, "mlp_head.0"), get, "mlp_head.1").to(images.dtype)

    return call


def getter(parameters: dict[str, Tensor]) -> Get:
    return lambda name: parameters[name].double()


def linear(x: Tensor, get: Get, name: str) -> Tensor:
    return x @ get(f"{name}.weight").T + get(f"{name}.bias")


def norm(x: Tensor, get: Get, name: str) -> Tensor:
    variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * get(f"{name}.weight") + get(f"{name}.bias")


def shifted_tokens(x: Tensor, patch: int, get: Get, name: str) -> Tensor:
    """The map beside itself moved down right, down left, up right and up left: (B, C, H, W) -> (B, N, D)."""
    half = patch // 2
    moved = [moved_by(x, down, right) for down in (half, -half) for right in (half, -half)]
    return linear(norm(pixels(torch.cat([x, *moved], 1), patch), get, f"{name}.1"), get, f"{name}.2")


def moved_by(x: Tensor, down: int, right: int) -> Tensor:
    """Each pixel from where it was before the move; 0 from outside."""
    rows, columns = torch.arange(x.shape[2])[:, None] - down, torch.arange(x.shape[3]) - right
    inside = (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])
    return x[:, :, rows % x.shape[2], columns % x.shape[3]] * inside


def pixels(x: Tensor, patch: int) -> Tensor:
    """Each patch as one vector, row by row, all channels of a pixel together."""
    corners = [(top, left) for top in range(0, x.shape[2], patch) for left in range(0, x.shape[3], patch)]
    patches = [x[:, :, top : top + patch, left : left + patch] for top, left in corners]
    return torch.stack([each.permute(0, 2, 3, 1).flatten(1) for each in patches], dim=1)


def positions(table: Tensor, grid: tuple[int, int], size: torch.Size, patch: int, tokens: int = 1) -> Tensor:
    """The table for another grid, bicubic with antialiasing, its first entries kept."""
    wanted = size[0] // patch, size[1] // patch
    if wanted == grid:
        return table
    picture = table[:, tokens:].float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=wanted, mode="bicubic", antialias=True).double()
    return torch.cat([table[:, :tokens], picture.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def attend(x: Tensor, get: Get, name: str, config) -> Tensor:
    """Equation 4 for one query after the other; with LSA a query leaves out its own key."""
    heads = config.num_heads
    width = x.shape[-1] // heads
    tau = get(f"{name}.scale")[:, None] if config.lsa else width**-0.5
    q, k, v = (part.unflatten(-1, (heads, width)) for part in (x @ get(f"{name}.to_qkv.weight").T).chunk(3, dim=-1))
    rows = []
    for i in range(x.shape[1]):
        others = torch.arange(x.shape[1]) != i if config.lsa else slice(None)
        weights = (torch.einsum("bhd,bmhd->bhm", q[:, i], k[:, others]) * tau).exp()
        answer = torch.einsum("bhm,bmhd->bhd", weights, v[:, others]) / weights.sum(-1)[..., None]
        rows.append(answer.flatten(1))
    return linear(torch.stack(rows, dim=1), get, f"{name}.to_out.0")
