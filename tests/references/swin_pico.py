"""As the small Swin with both ideas."""

from __future__ import annotations

from references.sl_swin import build

__all__ = ["build"]
