"""timm's VisionTransformer with its attention pooling."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from references import Reference, loaded


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config
    other = VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=model.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=False,
        global_pool="map",
        dynamic_img_size=True,
    )
    return loaded(other, model)
