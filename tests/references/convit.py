"""timm's ConVit, which takes one size and believes it square: built for the size asked, our positions resized for it
by timm's function; on a grid that is not square it is told the offsets."""

from __future__ import annotations

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from references import Reference, called


def offsets(grid: tuple[int, int]) -> Tensor:
    """Column difference, row difference and squared distance, key less query: (1, N, N, 3)."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    table = [[(c - b, r - a, (c - b) ** 2 + (r - a) ** 2) for r, c in places] for a, b in places]
    return torch.tensor(table, dtype=torch.float32)[None]


def build(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """timm's variant of that name; for the wider ones ("plus") 64 channels a head, which is what timm asks for."""
    config = model.config
    changes = {"img_size": size, "depth": config.depth, "local_up_to_layer": config.local_up_to_layer}
    if name.endswith("_plus"):
        changes["embed_dim"] = 64
    if "nano" in name:
        name = "convit_tiny"
        changes |= {"patch_size": config.patch_size, "num_heads": config.num_heads}
        changes["embed_dim"] = config.embed_dim // config.num_heads
    other = timm.create_model(
        name.removesuffix("_plus"), num_classes=model.num_classes, in_chans=config.in_chans, **changes
    )
    grid = size[0] // config.patch_size, size[1] // config.patch_size
    if grid[0] != grid[1]:
        for block in other.blocks[: config.local_up_to_layer]:
            block.attn.rel_indices = offsets(grid)
    old = (config.img_size // config.patch_size,) * 2

    def rename(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        table = resample_abs_pos_embed(parameters["pos_embed"], grid, old, num_prefix_tokens=0)
        return {**parameters, "pos_embed": table}

    return called(other.train(model.training), rename)
