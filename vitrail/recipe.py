"""The dataclasses of a run. A recipe is a value: resolved before training, saved as `recipe.json`, never changed.

The command line is these classes through tyro, so every field's docstring is also its help text. Nothing here
imports torch: `vitrail train --help` stays light.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitrail.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Data:
    """Where the images come from and how they become a batch."""

    source: str = "digits"
    """digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards such as shards/{000..127}.tar."""
    img_size: int | None = None
    """Side of the square the model sees, in pixels. None: the model's own."""
    in_chans: int | None = None
    """Channels of an image. None: the source's."""
    batch_size: int = 64
    """Images a step (of all accumulated micro-batches together, see optim.accumulate)."""
    workers: int = 2
    """Processes that read and augment. The batches are the same for any number."""
    limit: int | None = None
    """Use at most this many images of each split, drawn evenly from the classes. None: all."""
    val_fraction: float = 0.2
    """Share of the images held out, stratified and seeded, where the source has no split of its own."""
    mean: tuple[float, ...] | None = None
    """Subtracted from images scaled to [0, 1]. None: the pretrained weights' own, else ImageNet's (0.5 for grey)."""
    std: tuple[float, ...] | None = None
    """Divides after the mean. None: as for mean."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 0.875
    """Evaluation resizes the short side to img_size / crop_pct and takes the centre."""


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images, through torchvision's transforms v2; 0 turns a part off."""

    crop: Literal["resized", "padded", "none"] = "resized"
    """resized: random area and aspect; padded: random shift by up to crop_padding pixels; none: as in evaluation."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a resized crop takes."""
    crop_padding: int = 4
    """Pixels of a padded crop."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    rotate: float = 0.0
    """Largest rotation, in degrees."""
    rand_augment: int = 0
    """RandAugment operations an image (0: none)."""
    rand_augment_magnitude: int = 9
    """Strength of RandAugment, 0 to 10 as in timm."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by up to this share."""
    erasing: float = 0.0
    """Probability that a rectangle is erased."""
    mixup: float = 0.0
    """Alpha of MixUp's Beta(alpha, alpha)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha). With both, each batch draws one of them."""


@dataclass(frozen=True)
class Optim:
    """The optimiser. No weight decay on norms, biases, tokens and positions."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum 0.9."""
    lr: float = 5e-4
    """Peak learning rate for lr_batch images a step; scaled linearly with the batch size, once, at launch."""
    lr_batch: int | None = None
    """Batch size that lr is meant for. None: lr is taken as it is."""
    weight_decay: float = 0.05
    """Decoupled for AdamW, added to the gradient for SGD, as in torch."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    clip_grad: float | None = None
    """Largest global norm of the gradient. None: not clipped."""
    accumulate: int = 1
    """Micro-batches a step: less memory, the same mathematics."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay, a pure function of the step."""

    epochs: int = 100
    """Passes over the training images."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0 to its peak."""
    min_lr: float = 0.0
    """Last learning rate, as a share of the peak."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Two runs of one recipe on one CPU give the same weights, bit for bit."""

    model: str = "vit_pico_patch2_8"
    """A name from `vitrail models`, or ./my_file.py:name."""
    pretrained: bool = False
    """Start from the official weights (Hugging Face hub)."""
    initial_checkpoint: str = ""
    """Start from these weights instead: .safetensors, .pth or .npz."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    drop_path: float = 0.0
    """Stochastic depth: largest rate, rising linearly with depth."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then what is evaluated and saved. None: no average."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; twice as fast on hardware that has it, many times slower on a CPU that has not."""
    compile: bool = False
    """torch.compile the model (pays on long runs)."""
    seed: int = 0
    """Decides weights, split, order, augmentation and dropout."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written after every epoch, and within long epochs after this many minutes."""


def smoke(recipe: Recipe) -> Recipe:
    """The same code in two steps: 8 images a split, batches of 4, one epoch, random weights, no loader process."""
    return replace(
        recipe,
        pretrained=False,
        data=replace(recipe.data, limit=8, batch_size=4, workers=0),
        schedule=replace(recipe.schedule, epochs=1, warmup_epochs=0.0),
    )


def to_json(recipe: Recipe) -> str:
    """The whole recipe as JSON text, the inverse of `from_json`."""
    return json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"


def from_json(text: str, where: Path | str = "recipe.json") -> Recipe:
    """The recipe that `to_json` wrote. Raises UserError for a key that no field has, naming the nearest."""
    return _build(Recipe, json.loads(text), str(where))


def _build(cls: type, values: Any, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{where}: {cls.__name__} is {values!r}; it must be an object with {', '.join(hints)}")
    for key in values:
        if key not in hints:
            raise UserError(f"{where}: {cls.__name__} has no field '{key}'{did_you_mean(key, hints)}")
    return cls(**{key: _value(hints[key], value, where) for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    wants_tuple = any(typing.get_origin(part) is tuple for part in (hint, *_members(hint)))
    return tuple(value) if wants_tuple and isinstance(value, list) else value  # JSON has no tuples


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else ()
