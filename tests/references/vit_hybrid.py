"""As ViT, on timm's ResNetV2."""

from __future__ import annotations

from references.vit import build

__all__ = ["build"]
