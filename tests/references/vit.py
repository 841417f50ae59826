"""timm's VisionTransformer, which takes other sizes when asked to."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, name: str, _size: tuple[int, int]) -> Reference:
    """Depth and image size as ours; positions resized on the fly."""
    config = model.config
    return from_timm(model, name, img_size=config.img_size, depth=config.depth, dynamic_img_size=True)
