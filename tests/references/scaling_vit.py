"""timm's VisionTransformer with its attention pooling."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from references import Reference, loaded, sizes


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config
    other = VisionTransformer(
        **sizes(model),
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=False,
        global_pool="map",
        dynamic_img_size=True,
    )
    return loaded(other, model)
