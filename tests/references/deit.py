"""As ViT."""

from __future__ import annotations

from references.vit import build

__all__ = ["build"]
