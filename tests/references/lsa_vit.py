"""As the ViT with both ideas."""

from __future__ import annotations

from references.sl_vit import build

__all__ = ["build"]
