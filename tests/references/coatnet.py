"""timm's MaxxVit, of which its names are sizes."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, name: str, _size: tuple[int, int]) -> Reference:
    """Depths and image size as ours."""
    return from_timm(model, name, depths=model.config.depths, img_size=model.config.img_size)
