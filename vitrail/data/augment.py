"""uint8 image (C, H, W) -> normalised float32 (C, img_size, img_size), for training (random) and for scoring (not).

Everything goes through torchvision's transforms v2 on tensors, and torch's global random numbers are the only chance
in it, so that whoever seeds them decides the augmentation. Training, in order:

    crop          resized: a random share of the area and aspect, resized; padded: a shift by up to crop_padding
                  pixels, black beyond the border; none: as in scoring
    rotate        by up to so many degrees, black corners; with a padded crop both are one resampling
    flip          left to right
    policy        RandAugment or AutoAugment, see policies.py
    color jitter  brightness, contrast, saturation
    normalise     (x / 255 - mean) / std
    erase         one rectangle of a random share of the area, aspect 0.3 to 3.3, filled with unit-normal noise per
                  pixel or with 0, which is the mean colour by now

Scoring resizes the short side to floor(img_size / crop_pct), as timm does, and takes the centre; an image that
already has img_size x img_size is left as it is. Of a picture more than 4 times as long as wide only the central 4:1
is resized: a 1 x 5000 strip would else become 256 x 1,280,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitrail.data.policies import STRONGEST, RandAugment, auto_augment
from vitrail.errors import UserError

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Transform = Callable[[Tensor], Tensor]

_LONGEST = 4  # long side / short side of what scoring resizes


class Augmentation(Protocol):
    """What is read of recipe.Augment, which documents the fields."""

    @property
    def crop(self) -> Literal["resized", "padded", "none"]: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def crop_padding(self) -> int: ...
    @property
    def flip(self) -> float: ...
    @property
    def rotate(self) -> float: ...
    @property
    def rand_augment(self) -> int: ...
    @property
    def rand_augment_magnitude(self) -> int: ...
    @property
    def rand_augment_std(self) -> float: ...
    @property
    def rand_augment_prob(self) -> float: ...
    @property
    def auto_augment(self) -> Literal["none", "imagenet", "cifar10", "svhn"]: ...
    @property
    def color_jitter(self) -> float: ...
    @property
    def erasing(self) -> float: ...
    @property
    def erasing_scale(self) -> tuple[float, float]: ...
    @property
    def erasing_fill(self) -> Literal["noise", "mean"]: ...


def train_transform(
    augment: Augmentation,
    *,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
    crop_pct: float = 0.875,
) -> Transform:
    """The augmentation of training images: uint8 (C, H, W) -> float32 (len(mean), img_size, img_size).

    `crop_pct` counts only where `augment.crop` is "none". Raises UserError for values that make no sense.
    """
    _check(augment)
    _check_policies(augment, len(mean))
    mode = v2.InterpolationMode(interpolation)
    turn_mode = v2.InterpolationMode.NEAREST if interpolation == "nearest" else v2.InterpolationMode.BILINEAR
    steps: list[Transform] = [_Channels(len(mean))]
    if augment.crop == "resized":
        steps.append(v2.RandomResizedCrop(img_size, augment.crop_scale, interpolation=mode, antialias=True))
    else:
        steps.append(_Fit(img_size, 1.0 if augment.crop == "padded" else crop_pct, mode))
    padding = augment.crop_padding if augment.crop == "padded" else 0
    if augment.rotate:
        steps.append(_Turn(augment.rotate, padding, turn_mode))
    elif padding:
        steps.append(_Shift(padding))
    if augment.flip:
        steps.append(_Flip(augment.flip))
    if augment.rand_augment:
        strength = augment.rand_augment_magnitude, augment.rand_augment_std
        steps.append(RandAugment(augment.rand_augment, *strength, augment.rand_augment_prob, turn_mode))
    if augment.auto_augment != "none":
        steps.append(auto_augment(augment.auto_augment, turn_mode))
    if augment.color_jitter:
        steps.append(v2.ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    steps.append(_Normalise(mean, std))
    if augment.erasing:
        fill: str | float = "random" if augment.erasing_fill == "noise" else 0.0
        steps.append(v2.RandomErasing(augment.erasing, augment.erasing_scale, (0.3, 3.3), value=fill, inplace=True))
    return _InTurn(steps)


def eval_transform(
    *, img_size: int, mean: Sequence[float], std: Sequence[float], interpolation: Interpolation, crop_pct: float
) -> Transform:
    """What an image goes through to be scored: uint8 (C, H, W) -> float32 (len(mean), img_size, img_size)."""
    fit = _Fit(img_size, crop_pct, v2.InterpolationMode(interpolation))
    return _InTurn([_Channels(len(mean)), fit, _Normalise(mean, std)])


def adapt_channels(image: Tensor, channels: int) -> Tensor:
    """Image (C, H, W) with another number of channels: grey is repeated, RGB becomes its luma; else UserError."""
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return image.repeat(channels, 1, 1)
    if image.shape[0] == 3 and channels == 1:
        return F.rgb_to_grayscale(image)
    raise UserError(f"an image has {image.shape[0]} channels and the model takes {channels}; set in_chans")


def _check(augment: Augmentation) -> None:
    for name in ("flip", "erasing", "rand_augment_prob"):
        if not 0 <= getattr(augment, name) <= 1:
            raise UserError(f"augment.{name} is {getattr(augment, name)}; a probability lies between 0 and 1")
    for name in ("crop_scale", "erasing_scale"):
        smallest, largest = getattr(augment, name)
        if not 0 < smallest <= largest <= 1:
            raise UserError(f"augment.{name} is {smallest, largest}; it must be two rising shares between 0 and 1")
    for name in ("crop_padding", "rotate", "rand_augment", "rand_augment_std", "color_jitter"):
        if not getattr(augment, name) >= 0:
            raise UserError(f"augment.{name} is {getattr(augment, name)}; it must not be negative")
    if not 0 <= augment.rand_augment_magnitude <= STRONGEST:
        raise UserError(
            f"augment.rand_augment_magnitude is {augment.rand_augment_magnitude}; it goes from 0 to {STRONGEST}"
        )


def _check_policies(augment: Augmentation, channels: int) -> None:
    colours = augment.rand_augment or augment.auto_augment != "none" or augment.color_jitter
    if colours and channels not in (1, 3):
        raise UserError(
            f"augment.rand_augment, auto_augment and color_jitter change the colours of grey or RGB images, and these "
            f"have {channels} channels; turn them off"
        )
    if augment.rand_augment and augment.auto_augment != "none":
        raise UserError(
            f"augment.rand_augment is {augment.rand_augment} and augment.auto_augment {augment.auto_augment}; "
            f"set rand_augment to 0 or auto_augment to none"
        )


# Each step is a class with values, not a closure, so that a transform can be sent to a worker process. Where v2's own
# class costs more than its work on an image of 8 x 8 pixels, the step draws the numbers and calls v2's function.


class _InTurn:
    def __init__(self, steps: list[Transform]) -> None:
        self.steps = steps

    def __call__(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


class _Channels:
    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Tensor) -> Tensor:
        return adapt_channels(image, self.channels)


class _Fit:
    """Resize the short side to img_size / crop_pct, take the centre."""

    def __init__(self, img_size: int, crop_pct: float, mode: v2.InterpolationMode) -> None:
        if not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct is {crop_pct}; it must lie above 0 and be at most 1")
        self.img_size, self.short_side, self.mode = img_size, math.floor(img_size / crop_pct), mode

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height == width == self.img_size:
            return image
        longest = _LONGEST * min(height, width)
        if max(height, width) > longest:
            image = F.center_crop(image, [min(height, longest), min(width, longest)])
        image = F.resize(image, [self.short_side], self.mode, antialias=True)
        return F.center_crop(image, [self.img_size, self.img_size])


class _Turn:
    """Rotate by up to `degrees` and shift by up to `padding` whole pixels, black beyond the border."""

    def __init__(self, degrees: float, padding: int, mode: v2.InterpolationMode) -> None:
        self.degrees, self.padding, self.mode = degrees, padding, mode

    def __call__(self, image: Tensor) -> Tensor:
        turn, *shifts = torch.rand(3).tolist()
        across, down = (_whole(share, self.padding) for share in shifts)
        return turn_and_shift(image, (2 * turn - 1) * self.degrees, across, down, self.mode.value)


def turn_and_shift(image: Tensor, degrees: float, across: int, down: int, mode: str) -> Tensor:
    """A square uint8 image (C, S, S) rotated about its centre, then shifted; v2.functional.affine at half its cost."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = 2 * across / image.shape[2], 2 * down / image.shape[1]
    theta = torch.tensor([[[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]]])
    grid = nn.functional.affine_grid(theta, [1, *image.shape], align_corners=False)
    turned = nn.functional.grid_sample(image[None].float(), grid, mode, "zeros", align_corners=False)
    return turned[0].round_().to(torch.uint8)


class _Shift:
    """Shift by up to `padding` whole pixels, black beyond the border: v2.RandomCrop(size, padding), lean."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, image: Tensor) -> Tensor:
        down, across = (self.padding - _whole(share, self.padding) for share in torch.rand(2).tolist())
        height, width = image.shape[-2:]
        padded = nn.functional.pad(image, [self.padding] * 4)
        return padded[:, down : down + height, across : across + width]


def _whole(share: float, reach: int) -> int:
    """A share of [0, 1) as a whole number from -reach to reach."""
    return math.floor((2 * reach + 1) * share) - reach


class _Flip:
    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(()).item() < self.probability else image


class _Normalise:
    """uint8 0..255 -> (x / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(f"mean {tuple(mean)} and std {tuple(std)} need one positive deviation for every mean")
        self.mean = torch.tensor(mean)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std)[:, None, None] * 255)

    def __call__(self, image: Tensor) -> Tensor:
        return image.to(torch.float32).sub_(self.mean).mul_(self.scale)
