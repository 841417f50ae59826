"""As Swin."""

from __future__ import annotations

from references.swin import build

__all__ = ["build"]
