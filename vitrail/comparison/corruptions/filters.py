"""What several corruptions share: a Gaussian, an enlarged middle, and the drag of a moving camera."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """`image` (H, W) or (H, W, C) smoothed over H and W as scikit-image does: edges repeated, cut off at 4 sigma."""
    sigmas = (sigma, sigma, *(0 for _ in image.shape[2:]))
    return ndimage.gaussian_filter(image, sigmas, mode="nearest", truncate=4.0)


def enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of `image` (H, W) or (H, W, C), enlarged `factor` >= 1 times, linearly; the same shape."""
    for axis in (0, 1):
        length = image.shape[axis]
        crop = math.ceil(length / factor)
        size = round(crop * factor)
        # corners fall on corners; what is too many is cut off on both sides
        places = (np.arange(length) + (size - length) // 2) * ((crop - 1) / (size - 1))
        low = np.minimum(places.astype(np.intp), crop - 2)
        share = (places - low).reshape(-1, *(1 for _ in image.shape[axis + 1 :]))
        low += (length - crop) // 2
        image = image.take(low, axis) * (1 - share) + image.take(low + 1, axis) * share
    return image


def dragged(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """`image` uint8 (H, W) or (H, W, C) moved along `angle` (degrees): the motion blur of ImageMagick.

    2 ceil(radius) + 1 steps of one pixel, to one side only, weighted by half a Gaussian. Each is taken at the nearest
    pixel, and outside the image the edge repeats. Returned rounded, in grey levels.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    right = np.ceil(steps * math.cos(turn) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(turn) - 0.5).astype(int)
    (height, width), reach = image.shape[:2], len(steps)
    margin = [(reach, reach), (reach, reach), *((0, 0) for _ in image.shape[2:])]
    padded = np.pad(image, margin, mode="edge").astype(np.float64)
    total = np.zeros(image.shape)
    for weight, x, y in zip(weights, right + reach, down + reach, strict=True):
        total += weight * padded[y : y + height, x : x + width]
    return np.floor(total + 1e-6)
