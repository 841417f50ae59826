"""RandAugment and AutoAugment: operations drawn anew for each uint8 image, on top of torchvision's transforms v2.

RandAugment (Cubuk et al., 2020, arXiv 1909.13719) draws some of 14 operations, with strengths on timm's scale of 0 to
10. AugReg goes to 20: shears, shifts and angles go on growing in proportion, as in TensorFlow's code; colours change
by at most 100 % of themselves; posterising and solarising stay as they are at 10. What timm's
`rand-m9-mstd0.5-inc1` adds is here too: normal noise on the strength of every operation, clipped to [0, 10] as there,
and a coin before each (0.5 in timm). What stays torchvision's: its operations (identity is one, timm's
SolarizeAdd is none), translation by up to 45.3 % of a side (timm: 45 %), posterising down to 4 bits (timm: to none).
Strength 0 is no identity: autocontrast, equalize and invert have no strength.

AutoAugment (Cubuk et al., 2019, arXiv 1805.09501) draws one of 25 learned pairs of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

STRONGEST = 20
_WHOLE = 10  # where timm's scale ends
_FURTHER = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_STEPS = 100  # strengths with noise are rounded to so many a unit


class RandAugment:
    """uint8 (C, H, W) -> the same shape, `operations` times: with probability `prob` an operation of a strength drawn
    from a normal distribution around `magnitude` with deviation `std`."""

    def __init__(self, operations: int, magnitude: float, std: float, prob: float, mode: v2.InterpolationMode) -> None:
        self.operations, self.magnitude, self.std, self.prob = operations, magnitude, std, prob
        self.steps, self.strongest = (_STEPS if std else 1), max(magnitude, _WHOLE)
        self.one = _OneOperation(1, 0, num_magnitude_bins=STRONGEST * self.steps + 1, interpolation=mode)

    def __call__(self, image: Tensor) -> Tensor:
        for _ in range(self.operations):
            if self.prob < 1 and torch.rand(()).item() >= self.prob:
                continue
            noise = self.std * torch.randn(()).item() if self.std else 0.0
            strength = min(max(self.magnitude + noise, 0.0), self.strongest)
            self.one.magnitude = round(strength * self.steps)
            image = self.one(image)
        return image


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


class _OneOperation(v2.RandAugment):
    """torchvision's, with strengths up to 20 where its own end at 10."""

    _AUGMENTATION_SPACE = {
        name: (_beyond(name, strengths), signed)
        for name, (strengths, signed) in v2.RandAugment._AUGMENTATION_SPACE.items()
    }


def auto_augment(policy: Literal["imagenet", "cifar10", "svhn"], mode: v2.InterpolationMode) -> v2.AutoAugment:
    """The policy learned on that data set: uint8 (1 or 3, H, W) -> the same shape."""
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=mode)
