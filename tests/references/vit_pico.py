"""timm's ViT at the sizes of the small-data paper."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    pool = model.config.global_pool
    tokens = {} if pool == "token" else {"class_token": False, "global_pool": pool, "fc_norm": False}
    return from_timm(model, "vit_tiny_patch16_224", dynamic_img_size=True, **sizes(model), **tokens)


def sizes(model: nn.Module) -> dict[str, Any]:
    """The arguments of timm's ViT, as ours has them."""
    config = dataclasses.asdict(model.config)
    return {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
