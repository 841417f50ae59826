"""As CoAtNet."""

from __future__ import annotations

from references.coatnet import build

__all__ = ["build"]
