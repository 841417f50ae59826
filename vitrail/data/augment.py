"""uint8 image (C, H, W) -> normalised float32 (C, img_size, img_size), for training (random) and for scoring (not).

Torch's global random numbers are the only chance in it, so that whoever seeds them decides the augmentation. Training,
in order:

    crop          resized: a random share of the area and aspect, resized; padded: a shift by up to crop_padding
                  pixels, black beyond the border; none: as in scoring
    rotate        by up to so many degrees, black corners; with a padded crop both are one resampling
    flip          left to right
    policy        RandAugment or AutoAugment, see policies.py
    color jitter  brightness, contrast, saturation
    normalise     (x / 255 - mean) / std
    erase         one rectangle, see erasing.py

Every image is drawn as uint8 and a batch of them finished: so a batch travels from the process that drew it, and to the
GPU, as a quarter of the bytes, and is normalised where the model is. `transform(image)` does both for one image.

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

from vitrail.data.erasing import Erasing, Patch, Patches, paste, together
from vitrail.data.pictures import Picture, Pixels
from vitrail.data.policies import STRONGEST, OnPillow, Operation, RandAugment, auto_augment
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


class Pipeline:
    """What becomes of an image: a crop of the size of the model's, steps on its pixels, normalising, erasing."""

    def __init__(
        self,
        crop: Callable[[Picture], Tensor],
        steps: Sequence[Transform],
        mean: Sequence[float],
        std: Sequence[float],
        erasing: Erasing | None = None,
    ) -> None:
        self.crop, self.steps, self.erasing = crop, steps, erasing
        self.normalise = _Normalise(mean, std)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> float32 (len(mean), img_size, img_size), normalised."""
        pixels, patch = self.draw(Pixels(image))
        return self.finish(pixels[None], together([patch]))[0]

    def draw(self, picture: Picture) -> tuple[Tensor, Patch | None]:
        """The image that training or scoring sees, uint8 (S, S, C), and what erases a part of it.

        The colours of a pixel lie side by side, as decoders, resizing and Pillow leave them.
        """
        image = self.crop(picture)
        for step in self.steps:
            image = step(image)
        patch = self.erasing.draw(*image.shape) if self.erasing is not None else None
        return image.permute(1, 2, 0), patch

    def finish(self, images: Tensor, patches: Patches, out: Tensor | None = None) -> Tensor:
        """Drawn images (B, S, S, C), uint8, on any device -> (B, C, S, S), normalised float32, parts erased.

        `out` is memory for the result, of its shape and type.
        """
        images = self.normalise(images.permute(0, 3, 1, 2), out)
        paste(images, patches)
        return images


def train_transform(
    augment: Augmentation,
    *,
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
    crop_pct: float = 0.875,
) -> Pipeline:
    """The augmentation of training images: uint8 (C, H, W) -> float32 (len(mean), img_size, img_size).

    `crop_pct` counts only where `augment.crop` is "none". Raises UserError for values that make no sense.
    """
    _check(augment)
    _check_policies(augment, len(mean))
    mode = v2.InterpolationMode(interpolation)
    turn_mode = v2.InterpolationMode.NEAREST if interpolation == "nearest" else v2.InterpolationMode.BILINEAR
    crop: Callable[[Picture], Tensor]
    if augment.crop == "resized":
        crop = _ResizedCrop(img_size, augment.crop_scale, mode, len(mean))
    else:
        crop = _Fit(img_size, 1.0 if augment.crop == "padded" else crop_pct, mode, len(mean))
    steps: list[Transform] = []
    padding = augment.crop_padding if augment.crop == "padded" else 0
    if augment.rotate:
        steps.append(_Turn(augment.rotate, padding, turn_mode))
    elif padding:
        steps.append(_Shift(padding))
    if augment.flip:
        steps.append(_Flip(augment.flip))
    operations = _operations(augment, turn_mode)
    if operations:
        steps.append(OnPillow(operations))
    erasing = Erasing(augment.erasing, augment.erasing_scale, augment.erasing_fill == "noise")
    return Pipeline(crop, steps, mean, std, erasing if augment.erasing else None)


def _operations(augment: Augmentation, mode: v2.InterpolationMode) -> list[Operation]:
    """What is done to the colours, and by a policy, on a Pillow image."""
    operations: list[Operation] = []
    if augment.rand_augment:
        strength = augment.rand_augment_magnitude, augment.rand_augment_std
        operations.append(RandAugment(augment.rand_augment, *strength, augment.rand_augment_prob, mode))
    if augment.auto_augment != "none":
        operations.append(auto_augment(augment.auto_augment, mode))
    if augment.color_jitter:
        operations.append(v2.ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    return operations


def eval_transform(
    *, img_size: int, mean: Sequence[float], std: Sequence[float], interpolation: Interpolation, crop_pct: float
) -> Pipeline:
    """What an image goes through to be scored: uint8 (C, H, W) -> float32 (len(mean), img_size, img_size)."""
    return Pipeline(_Fit(img_size, crop_pct, v2.InterpolationMode(interpolation), len(mean)), (), mean, std)


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


class _ResizedCrop:
    """v2.RandomResizedCrop, drawn before the picture is decoded."""

    def __init__(self, img_size: int, scale: tuple[float, float], mode: v2.InterpolationMode, channels: int) -> None:
        self.crop, self.mode, self.channels = v2.RandomResizedCrop(img_size, scale), mode, channels

    def __call__(self, picture: Picture) -> Tensor:
        drawn = self.crop.make_params([torch.empty(()).expand(1, picture.height, picture.width)])
        box = drawn["top"], drawn["left"], drawn["height"], drawn["width"]
        image = adapt_channels(picture.region(box, self.crop.size[0]), self.channels)
        return F.resize(image, self.crop.size, self.mode, antialias=True)


class _Fit:
    """Resize the short side to img_size / crop_pct, take the centre."""

    def __init__(self, img_size: int, crop_pct: float, mode: v2.InterpolationMode, channels: int) -> None:
        if not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct is {crop_pct}; it must lie above 0 and be at most 1")
        self.img_size, self.short_side, self.mode = img_size, math.floor(img_size / crop_pct), mode
        self.channels = channels

    def __call__(self, picture: Picture) -> Tensor:
        image = adapt_channels(picture.whole(), self.channels)
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
    """uint8 (B, C, H, W) 0..255 -> (x / 255 - mean) / std, where the images are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(f"mean {tuple(mean)} and std {tuple(std)} need one positive deviation for every mean")
        self.mean = torch.tensor(mean)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std)[:, None, None] * 255)

    def __call__(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(images.shape, device=images.device)
        return out.copy_(images).sub_(self.mean.to(images.device)).mul_(self.scale.to(images.device))
