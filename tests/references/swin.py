"""timm's Swin, which takes other sizes when asked to."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, name: str, _size: tuple[int, int]) -> Reference:
    """Depths and image size as ours, masks by the size of the images."""
    config = model.config
    return from_timm(
        model, name, img_size=config.img_size, depths=config.depths, drop_path_rate=0.0, strict_img_size=False
    )
