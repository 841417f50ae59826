"""Why a method has nothing to show for a model, in one form of words: "M is not available for X because Y"."""

from __future__ import annotations

from torch import nn

from vitrail.errors import UserError


def family_of(model: nn.Module) -> str:
    """The family of a model: the name of the file in vitrail/models that it comes from."""
    model = getattr(model, "_orig_mod", model)
    return type(model).__module__.rsplit(".", 1)[-1]


def not_available(method: str, model: nn.Module, because: str, instead: str = "") -> UserError:
    """The error to raise: what is asked, of which family, why not, and what to use `instead`, if anything."""
    use = f"; use {instead}" if instead else ""
    return UserError(f"{method} is not available for {family_of(model)} because {because}{use}")
