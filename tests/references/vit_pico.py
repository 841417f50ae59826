"""timm's ViT at the sizes of the small-data paper."""

from __future__ import annotations

import dataclasses

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = dataclasses.asdict(model.config)
    sizes = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    return from_timm(model, "vit_tiny_patch16_224", dynamic_img_size=True, **sizes)
