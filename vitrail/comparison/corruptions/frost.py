"""Frost on a window: an invented texture, as the reference's photographs come without a licence."""

from __future__ import annotations

import numpy as np
from scipy import fft

from vitrail.comparison.corruptions.severities import Setting

# mean colour (RGB) and deviation of the reference's five photographs; the second and the third are the same picture
_KINDS = [
    ((0.30, 0.58, 0.65), 0.08),
    ((0.79, 0.80, 0.84), 0.09),
    ((0.79, 0.80, 0.84), 0.09),
    ((0.54, 0.60, 0.65), 0.11),
    ((0.44, 0.48, 0.53), 0.17),
]
_DIRECTIONS = 6


def frost(image: np.ndarray, at: Setting) -> np.ndarray:
    """a x + b frost.

    Caution: the texture is not the reference's. Brightness, contrast and the fall of the spectrum are those of its
    photographs, crystals look alike only from afar: compare scores of frost between models, not with papers.
    """
    own, ice = at.values
    colour, deviation = _KINDS[at.rng.integers(len(_KINDS))]
    texture = crystals(image.shape[0], image.shape[1], at.rng)[..., None] * deviation + np.array(colour)
    return own * image + ice * np.clip(texture * 255, 0, 255)


def crystals(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A texture (height, width) of needles in grains, mean 0 and deviation 1.

    Each grain has one direction. Within it lie ridges of noise drawn out along that direction, over a cloud common to
    all. Everything is relative to the size of the image: at another resolution the same kind of window.
    """
    side = min(height, width)
    shape = (fft.next_fast_len(height), fft.next_fast_len(width))
    y, x = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])
    radius = np.maximum(np.hypot(y, x), 1 / side)
    along = np.pi / _DIRECTIONS * np.arange(_DIRECTIONS)[:, None, None]
    needles = np.exp(-(np.sin(np.arctan2(y, x) - along) ** 4) / 0.02) * (radius > 2 / side) / radius**1.25
    white = fft.rfft2(rng.normal(size=(3, *shape)))
    fields = np.concatenate([white[:1] * needles, white / radius**1.1]).astype(np.complex64)
    fields = fft.irfft2(fields, shape)[:, :height, :width]
    fields /= fields.std((1, 2), keepdims=True)
    direction = _grains(0.04 * side * fields[-2:], side, rng)
    texture = 0.25 * fields[-3] + np.exp(-1.5 * np.abs(np.take_along_axis(fields, direction[None], 0)[0]))
    return (texture - texture.mean()) / texture.std()


def _grains(bend: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A direction (H, W) for every pixel: that of the nearest of some points; `bend` (2, H, W) moves the borders."""
    height, width = bend.shape[1:]
    y, x = np.indices((height, width), dtype=np.float32) + bend
    points = rng.uniform(0, (height, width), (round(30 * height * width / side**2), 2)).astype(np.float32)
    nearest, direction = np.full((height, width), np.inf, np.float32), np.zeros((height, width), dtype=np.intp)
    for number, (down, right) in enumerate(points):
        distance = (y - down) ** 2 + (x - right) ** 2
        direction[distance < nearest] = number % _DIRECTIONS
        np.minimum(nearest, distance, out=nearest)
    return direction
