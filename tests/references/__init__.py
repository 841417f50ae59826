"""What our models are compared with: other implementations, fed with our parameters.

A reference is a function `(parameters, images) -> logits`, differentiable in both; `parameters` is our state dict. A
family with anything but timm's model of the same name has a file here, named like its own, with
`build(model, name, size) -> Reference`: `model` is ours, `size` the (H, W) of the images to come.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn
from torch.func import functional_call

from vitrail import describe

Reference = Callable[[dict[str, Tensor], Tensor], Tensor]
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def family(name: str) -> str:
    """The stem of the file that a model's name leads to."""
    return Path(describe(name)["file"]).stem


def reference(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """The family's own, or timm's model of that name."""
    module = f"{__name__}.{family(name)}"
    if importlib.util.find_spec(module):
        return importlib.import_module(module).build(model, name, size)
    return from_timm(model, name)


def from_timm(model: nn.Module, name: str, **changes: object) -> Reference:
    """timm's model `name`, whose state dict is ours key by key, in our mode; `changes` go to its constructor."""
    settings = {"num_classes": model.num_classes, "in_chans": model.config.in_chans, **changes}
    return loaded(timm.create_model(name, **settings), model)


def sizes(model: nn.Module, depth: str = "depth") -> dict[str, Any]:
    """The arguments that timm's constructors share, as ours has them; `depth` is their word for that one."""
    config = model.config
    names = ("img_size", "patch_size", "in_chans", "embed_dim")
    return {name: getattr(config, name) for name in names} | {"num_classes": model.num_classes, depth: config.depth}


def loaded(other: nn.Module, model: nn.Module) -> Reference:
    """`other`, whose state dict is that of `model` key by key, in its mode."""
    other.load_state_dict(model.state_dict(), strict=True)
    return called(other.train(model.training))


def called(other: nn.Module, rename: Rename = dict) -> Reference:
    """`other` with its parameters made from ours by `rename` (identity: the same keys) at every call."""
    return Called(other, rename)


@dataclass(frozen=True)
class Called:
    """A module of another library as a Reference; `module` is what benchmarks time."""

    module: nn.Module
    rename: Rename

    def __call__(self, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(self.module, self.rename(parameters), (images,))
