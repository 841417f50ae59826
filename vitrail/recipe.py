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
    """Images a step, of all processes and all accumulated micro-batches together."""
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
    repeats: int = 1
    """Repeated augmentation: so many differently augmented copies of an image follow each other, and an epoch sees
    1 / repeats of the images (Hoffer et al., 2020; 3 in DeiT)."""
    balanced: bool = False
    """Draw training images so that every class comes equally often (rare classes repeat)."""
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
    """Strength of RandAugment, 0 to 10 as in timm, up to 20 as in AugReg."""
    rand_augment_std: float = 0.0
    """Deviation of normal noise on that strength, drawn for each operation (timm's mstd; 0.5 in DeiT)."""
    rand_augment_prob: float = 1.0
    """Probability of each RandAugment operation (0.5 in timm and so in DeiT)."""
    auto_augment: Literal["none", "imagenet", "cifar10", "svhn"] = "none"
    """AutoAugment's learned policy of that data set (Cubuk et al., 2019)."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by up to this share."""
    erasing: float = 0.0
    """Probability that a rectangle is erased."""
    erasing_scale: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the area that is erased."""
    erasing_fill: Literal["noise", "mean"] = "noise"
    """What the rectangle is filled with: unit-normal noise per pixel, or the mean colour."""
    mixup: float = 0.0
    """Alpha of MixUp's Beta(alpha, alpha)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha). With both, each batch draws one of them."""
    mix_prob: float = 1.0
    """Share of the batches that MixUp or CutMix changes."""


@dataclass(frozen=True)
class Optim:
    """The optimiser. No weight decay on norms, biases, tokens and positions."""

    name: Literal["adamw", "sgd", "momentum", "adafactor"] = "adamw"
    """adamw; sgd with Nesterov momentum 0.9; momentum: without Nesterov; adafactor: as Scaling ViT changed it."""
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
    rho: float = 0.0
    """Radius of sharpness-aware minimisation (SAM): two passes a step. 0: off; 0.05 to 0.2 for ViT, 0.6 for Mixer."""
    layer_decay: float = 1.0
    """Each layer's learning rate is this share of that of the layer above it (fine-tuning: 0.65 to 0.9)."""
    head_lr: float = 1.0
    """The last layer's learning rate, as a multiple of the others'."""
    head_weight_decay: float | None = None
    """The last layer's weight decay (3.0 in Scaling ViT, for a body with 0.03). None: as the others'."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then decay: the learning rate is a pure function of the step."""

    name: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; rsqrt: 1 / sqrt(1 + epochs since then / timescale_epochs)."""
    epochs: int = 100
    """Passes over the training images (over 1 / data.repeats of them each)."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0 to its peak."""
    min_lr: float = 0.0
    """Last learning rate of cosine and linear, as a share of the peak."""
    timescale_epochs: float = 1.0
    """Of rsqrt: epochs after the warm-up until the learning rate is 1 / sqrt(2) of its peak."""
    cooldown_epochs: float = 0.0
    """Last epochs, in which the learning rate of rsqrt and constant falls linearly to 0."""
    frozen_epochs: int = 0
    """First epochs, in which only the last layer learns, at the peak learning rate; the schedule begins after them."""


@dataclass(frozen=True)
class Distill:
    """Learning from a teacher as well as from labels (DeiT, section 4). A model with a distillation token
    (deit_..._distilled_...) learns the labels with its class token and the teacher with the other."""

    teacher: str = ""
    """A run folder, or a model's name for its official weights. Empty: no teacher."""
    kind: Literal["hard", "soft"] = "hard"
    """hard: the teacher's most likely class is a second label; soft: its probabilities are."""
    alpha: float = 0.5
    """The teacher's share of the loss."""
    tau: float = 1.0
    """Temperature of soft distillation."""


@dataclass(frozen=True)
class Masked:
    """Masked patch prediction (ViT, appendix B.1.2), where the task is masked_patches."""

    share: float = 0.5
    """Share of the patches that are corrupted: 80 % masked, 10 % swapped for another, 10 % left as they are."""
    target: Literal["colour", "mean", "pixels"] = "colour"
    """What is predicted of them: their mean colour as one of 512 classes, as three numbers, or all their pixels."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Two runs of one recipe on one CPU give the same weights, bit for bit."""

    model: str = "vit_pico_patch2_8"
    """A name from `vitrail models`, or ./my_file.py:name."""
    pretrained: bool = False
    """Start from the official weights (Hugging Face hub)."""
    initial_checkpoint: str = ""
    """Start from these weights instead: .safetensors, .pth or .npz."""
    task: Literal["classify", "multilabel", "masked_patches"] = "classify"
    """What is learned. A source with several labels an image makes classify multilabel by itself."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    distill: Distill = field(default_factory=Distill)
    masked: Masked = field(default_factory=Masked)
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: a yes or no for every class, summed over the classes (AugReg; always so in multilabel)."""
    class_weights: str = "none"
    """Weight of each class in the loss: none, auto (rare classes count more), or by name: cat=2,dog=0.5."""
    head_bias: float | None = None
    """The last layer starts with weights 0 and this bias: 0 to fine-tune as ViT does, -6.9 before bce with 1000
    classes. None: as the model's paper starts it."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; over yes and no where an image has several labels."""
    drop_path: float = 0.0
    """Stochastic depth: largest rate, rising linearly with depth."""
    patch_drop: float = 0.0
    """Share of the patches that a ViT leaves out while it trains (PatchDropout): 0.5 is nearly twice as fast."""
    dropout: float = 0.0
    """Dropout after positions and dense layers, as ViT has it (0.1 in its pre-training)."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then what is evaluated and saved. None: no average."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16 (with loss scaling): autocast; twice as fast on hardware that has it, far slower on other CPUs."""
    compile: bool = False
    """torch.compile the model (pays on long runs)."""
    sharded: bool = False
    """FSDP: weights, gradients and optimiser are shared out over the processes (for models too large for one)."""
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
        schedule=replace(recipe.schedule, epochs=1, warmup_epochs=0.0, cooldown_epochs=0.0, frozen_epochs=0),
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
