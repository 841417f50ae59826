"""RandAugment and AutoAugment: operations drawn anew for each uint8 image, on top of torchvision's transforms v2.

RandAugment (Cubuk et al., 2020, arXiv 1909.13719) draws some of 14 operations, with strengths on timm's scale of 0 to
10. AugReg goes to 20: shears, shifts and angles go on growing in proportion, as in TensorFlow's code; colours change
by at most 100 % of themselves; posterising and solarising stay as they are at 10. What timm's
`rand-m9-mstd0.5-inc1` adds is here too: normal noise on the strength of every operation, clipped to [0, 10] as there,
and a coin before each (0.5 in timm). What stays torchvision's: its operations (identity is one, timm's
SolarizeAdd is none), translation by up to 45.3 % of a side (timm: 45 %), posterising down to 4 bits (timm: to none).
Strength 0 is no identity: autocontrast, equalize and invert have no strength.

AutoAugment (Cubuk et al., 2019, arXiv 1805.09501) draws one of 25 learned pairs of operations.

The operations are torchvision's on Pillow images, which take two thirds of the time that they take on tensors. A shift
by whole pixels is a crop that reaches beyond the picture, at a fortieth of the time of the affine map that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

STRONGEST = 20
_WHOLE = 10  # where timm's scale ends
_FURTHER = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_STEPS = 100  # strengths with noise are rounded to so many a unit


Operation = Callable[[Image.Image], Image.Image]
Strengths = tuple[str, list[float] | None, bool]
"""Of an operation: its name, its strength at each step of the scale if it has one, and whether it may be negative."""


class OnPillow:
    """Operations on a Pillow image, in turn, for tensors: uint8 (1 or 3, H, W) -> the same shape."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations

    def __call__(self, image: Tensor) -> Tensor:
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        picture = Image.fromarray(pixels.numpy())
        for operation in self.operations:
            picture = operation(picture)
        array = torch.from_numpy(np.array(picture))
        return array[None] if len(image) == 1 else array.permute(2, 0, 1)


class RandAugment:
    """Grey or RGB picture -> the same size, `operations` times: with probability `prob` an operation of a strength
    drawn from a normal distribution around `magnitude` with deviation `std`."""

    def __init__(self, operations: int, magnitude: float, std: float, prob: float, mode: v2.InterpolationMode) -> None:
        self.operations, self.magnitude, self.std, self.prob, self.mode = operations, magnitude, std, prob, mode
        self.steps, self.strongest = (_STEPS if std else 1), max(magnitude, _WHOLE)
        self.one = _OneOperation()
        self.strengths: dict[tuple[int, int], list[Strengths]] = {}  # of a picture's size

    def __call__(self, image: Image.Image) -> Image.Image:
        kinds = self.strengths.get(image.size) or self._of_size(image.size)
        for _ in range(self.operations):
            if self.prob < 1 and torch.rand(()).item() >= self.prob:
                continue
            noise = self.std * torch.randn(()).item() if self.std else 0.0
            strength = min(max(self.magnitude + noise, 0.0), self.strongest)
            name, scale, signed = kinds[int(torch.randint(len(kinds), ()))]  # v2.RandAugment, at a fifth of its cost
            value = scale[round(strength * self.steps)] if scale else 0.0
            value = -value if signed and torch.rand(()).item() <= 0.5 else value
            image = self.one._apply_image_or_video_transform(image, name, value, self.mode, {})
        return image

    def _of_size(self, size: tuple[int, int]) -> list[Strengths]:
        bins = STRONGEST * self.steps + 1
        scales = {name: scale(bins, size[1], size[0]) for name, (scale, _) in self.one._AUGMENTATION_SPACE.items()}
        self.strengths[size] = [
            (name, None if scale is None else scale.tolist(), self.one._AUGMENTATION_SPACE[name][1])
            for name, scale in scales.items()
        ]
        return self.strengths[size]


def _beyond(name: str, strengths: Callable[[int, int, int], Tensor | None]) -> Callable[[int, int, int], Tensor | None]:
    """torchvision's strengths of an operation, over a scale that is twice as long."""

    def doubled(bins: int, height: int, width: int) -> Tensor | None:
        scale = strengths(bins // 2 + 1, height, width)
        if scale is None:  # an operation without strength
            return None
        if name in ("Posterize", "Solarize"):
            return torch.cat([scale, scale[-1:].expand(bins // 2)])
        grown = torch.linspace(0.0, 2 * float(scale[-1]), bins)
        return grown if name in _FURTHER else grown.clamp_max(1.0)

    return doubled


class _Shifting:
    """A shift by whole pixels, black beyond the border, as the crop that it is."""

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        if transform_id in ("TranslateX", "TranslateY"):
            across, down = (int(magnitude), 0) if transform_id == "TranslateX" else (0, int(magnitude))
            return image.crop((-across, -down, image.width - across, image.height - down))
        apply = super()._apply_image_or_video_transform  # type: ignore[misc]
        return apply(image, transform_id, magnitude, interpolation=interpolation, fill=fill)


class _OneOperation(_Shifting, v2.RandAugment):
    """torchvision's, with strengths up to 20 where its own end at 10."""

    _AUGMENTATION_SPACE = {
        name: (_beyond(name, strengths), signed)
        for name, (strengths, signed) in v2.RandAugment._AUGMENTATION_SPACE.items()
    }


class _AutoAugment(_Shifting, v2.AutoAugment):
    pass


def auto_augment(policy: Literal["imagenet", "cifar10", "svhn"], mode: v2.InterpolationMode) -> v2.AutoAugment:
    """The policy learned on that data set: grey or RGB picture -> the same size."""
    return _AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=mode)
