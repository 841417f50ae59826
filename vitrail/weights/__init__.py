"""Trained weights: where they are published, how files are read, how they are fitted to a model.

`official.py` the table, `files.py` file -> tensors, `layouts.py` other libraries' names -> ours, `fit.py` tensors ->
model, `unfilled.py` a model whose random weights are not drawn. Importing this package loads none of torch, safetensors
and huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.weights.official import Official, imagenet_classes, official

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Official", "build_with_weights", "imagenet_classes", "load_weights", "official"]


def load_weights(model: nn.Module, name: str, pretrained: bool | str | Path) -> None:
    """Fill `model`, built as `name` for the wanted image size, channels and classes, with trained weights, in place.

    `pretrained` is True for the official ones, or a path (.safetensors, .pth, .npz, or a folder with
    model.safetensors) in the keys of timm, Google, torchvision or transformers. Another position grid is resized,
    another channel count adapted, another class count leaves a fresh head: each is logged in one line. All else must
    match: raises UserError naming what does not. False does nothing.
    """
    if pretrained is not False:
        from vitrail.weights.fit import load_weights as load

        load(model, name, pretrained)


def build_with_weights(build: Callable[[], nn.Module], name: str, pretrained: bool | str | Path) -> nn.Module:
    """The model that `build` makes, with trained weights as `load_weights` has them.

    The random weights that these would overwrite are not drawn, and no random number is used, but where a head stays
    fresh: then all is drawn as without trained weights. Raises UserError as `load_weights` does.
    """
    from vitrail.weights.fit import build_with_weights as build_them

    return build_them(build, name, pretrained)
