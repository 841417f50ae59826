"""What an engine is: one way to run a trained model on this machine, built for batches of one shape."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""From fine to coarse."""

Forward = Callable[[Tensor], Tensor]
"""(B, C, H, W) float32 -> logits (B, K) float32, for the one B it was built for."""


class Engine(NamedTuple):
    """`build(model, examples, batch_size, precision)` gives the model as a Forward for batches of `batch_size`.

    `model` is the engine's own: in eval mode, float32, without gradients; `examples` (N, C, H, W) float32 are real
    images, for those that calibrate. It raises whatever it likes where it cannot run this model.
    """

    name: str
    packages: tuple[str, ...]
    """What must be installed, by the names pip knows."""
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...]
    build: Callable[[nn.Module, Tensor, int, Precision], Forward]
    obstacle: Callable[[], str] = str
    """Why it cannot run on this machine, in a sentence without a full stop; empty where it can."""

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.packages if version(package) is None]


def version(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def replace_linear(model: nn.Module, other: Callable[[nn.Linear], nn.Module]) -> None:
    """Put `other(layer)` in the place of every plain linear layer of `model`."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, other(module))


def one_batch(examples: Tensor, batch_size: int) -> Tensor:
    """(N, C, H, W) -> (batch_size, C, H, W): the examples over and over."""
    return examples.repeat(-(-batch_size // len(examples)), 1, 1, 1)[:batch_size]


def cache_folder() -> Path:
    """Where choices and compiled kernels are kept: VITRAIL_HOME/engines, else in the user's cache folder."""
    home = os.environ.get("VITRAIL_HOME")
    return (
        Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vitrail"
    ).expanduser() / "engines"
