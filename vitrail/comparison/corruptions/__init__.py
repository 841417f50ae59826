"""The corruptions of ImageNet-C: how an image is spoiled, in 15 + 4 ways and 5 severities, by numpy, scipy and Pillow.

"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", Hendrycks and Dietterich, ICLR 2019,
arXiv 1903.12261. `docs/corruptions.md` says how far each one agrees with the authors' code, and what cannot.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from vitrail.comparison.corruptions import blur, digital, frost, noise, spatter, weather
from vitrail.comparison.corruptions.severities import Setting, setting
from vitrail.errors import UserError, did_you_mean

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

_SMALLEST = 8
_FUNCTIONS: dict[str, Callable[[np.ndarray, Setting], np.ndarray]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": frost.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter.spatter,
    "saturate": digital.saturate,
}


def corrupt(image: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """`image` uint8 (H, W, 3), RGB, sides of at least 8 pixels, spoiled: a new uint8 (H, W, 3).

    `name` is one of CORRUPTIONS or EXTRA, `severity` 1 (slight) to 5. The parameters are those published for the size
    nearest in ratio: CIFAR-10-C (32 pixels), Tiny-ImageNet-C (64) or ImageNet-C (224). What is measured in pixels
    (radii, flakes, displacements) is scaled by the shorter side over that size; noise and colours are not.

    The result is a function of the arguments alone: a numpy Generator seeded with (seed, name, severity). Give every
    image a `seed` of its own, or all get the same noise. The reference draws from numpy's global RandomState, hence
    equality to the bit was checked with its draws injected.

    Source: the 19 functions of hendrycks/robustness. As there, grey levels are cut off, not rounded, to 8 bits.
    """
    _check(image, name, severity, seed)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
    return spoil(image, name, setting(name, severity, image.shape, rng))


def spoil(image: np.ndarray, name: str, at: Setting) -> np.ndarray:
    """`corrupt` at a given Setting, unchecked: what gets the draws of another generator."""
    return np.clip(_FUNCTIONS[name](image, at), 0, 255).astype(np.uint8)


def _check(image: np.ndarray, name: str, severity: int, seed: int) -> None:
    if name not in _FUNCTIONS:
        near = did_you_mean(str(name), _FUNCTIONS) or "; choose one of " + ", ".join(_FUNCTIONS)
        raise UserError(f"there is no corruption '{name}'{near}")
    if isinstance(severity, bool) or severity not in (1, 2, 3, 4, 5) or severity != int(severity):
        raise UserError(f"the severity of {name} is {severity!r}; give a whole number from 1 (slight) to 5 (strong)")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"the seed of {name} is {seed!r}; give a whole number of at least 0")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"{name} takes an RGB image as a uint8 array (H, W, 3), not {found}; convert it first")
    if min(image.shape[:2]) < _SMALLEST:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UserError(f"{name} needs an image of at least {_SMALLEST} x {_SMALLEST} pixels, not {size}; enlarge it")
