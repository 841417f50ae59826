"""timm's TNT, which takes one size: built for the size asked, our position table resized for it by timm's function."""

from __future__ import annotations

import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from references import Reference, called


def build(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """timm's variant of that name; the paper's tiny one, which timm lacks, from the small one's constructor."""
    config = model.config
    changes = {"img_size": size, "depth": config.depth}
    if "tnt_ti" in name:
        name = name.replace("tnt_ti", "tnt_s")
        changes |= {"embed_dim": 192, "inner_dim": 12, "num_heads_outer": 3, "num_heads_inner": 2}
    other = timm.create_model(name, num_classes=model.num_classes, in_chans=config.in_chans, **changes)
    grid = other.pixel_embed.grid_size
    old = (config.img_size // config.patch_size,) * 2

    def rename(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        table = resample_abs_pos_embed(parameters["patch_pos"], grid, old)
        return {**parameters, "patch_pos": table}

    return called(other.train(model.training), rename)
