"""Weather: snow, fog, and a brighter day."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from vitrail.comparison.corruptions.filters import dragged, enlarged
from vitrail.comparison.corruptions.severities import Setting


def snow(image: np.ndarray, at: Setting) -> np.ndarray:
    """A whitened image, and flakes over it: noise above a threshold, enlarged and dragged, in two directions."""
    mean, deviation, size, threshold, radius, sigma, mix = at.values
    light = image.astype(np.float32) / 255.0
    flakes = enlarged(at.rng.normal(mean, deviation, light.shape[:2]), max(1.0, size * at.scale))
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
    angle = at.rng.uniform(-135, -45)
    flakes = dragged((flakes * 255).astype(np.uint8), radius * at.scale, sigma * at.scale, angle)[..., None] / 255.0
    grey = light @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    light = mix * light + (1 - mix) * np.maximum(light, grey[..., None] * 1.5 + 0.5)
    return (light + flakes + np.rot90(flakes, 2)) * 255


def fog(image: np.ndarray, at: Setting) -> np.ndarray:
    """A plasma added, and the sum brought back to the range of the image."""
    amount, decay = at.values
    height, width = image.shape[:2]
    light = image / 255.0
    brightest = light.max()
    thick = plasma(1 << (max(height, width) - 1).bit_length(), decay, at.rng)[:height, :width, None]
    return (light + amount * thick) * brightest / (brightest + amount) * 255


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A random landscape (size, size) in [0, 1] that wraps around: diamond-square, `size` a power of two.

    Midpoints are the mean of their four neighbours plus a uniform draw, first of squares, then of diamonds; at each
    halving of the step the draws shrink by `decay` squared.
    """
    land = np.zeros((size, size))
    wobble, step = 100.0, size

    def midpoints(four: np.ndarray) -> np.ndarray:
        return four / 4 + wobble * rng.uniform(-wobble, wobble, four.shape)

    while step >= 2:
        half = step // 2
        corners = land[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        land[half::step, half::step] = midpoints(below + np.roll(below, -1, 1))
        middles = land[half::step, half::step]
        beside = (middles + np.roll(middles, 1, 0)) + (corners + np.roll(corners, -1, 1))
        land[::step, half::step] = midpoints(beside)
        above = (middles + np.roll(middles, 1, 1)) + (corners + np.roll(corners, -1, 0))
        land[half::step, ::step] = midpoints(above)
        step, wobble = half, wobble / decay
    land -= land.min()
    return land / land.max()


def brightness(image: np.ndarray, at: Setting) -> np.ndarray:
    """`c` added to the value of HSV."""
    (more,) = at.values
    hsv = rgb_to_hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + more, 0, 1)
    return hsv_to_rgb(hsv) * 255
