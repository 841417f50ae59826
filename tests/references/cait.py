"""timm's Cait, built for the images to come, with our positions resized by timm's function."""

from __future__ import annotations

import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from references import Reference, called


def build(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """Depth as ours."""
    config = model.config
    other = timm.create_model(
        name, img_size=size, depth=config.depth, in_chans=config.in_chans, num_classes=model.num_classes
    )
    grid = [side // config.patch_size for side in size]

    def resized(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        table = resample_abs_pos_embed(parameters["pos_embed"], new_size=grid, old_size=model.grid, num_prefix_tokens=0)
        return {**parameters, "pos_embed": table}

    return called(other.train(model.training), resized)
