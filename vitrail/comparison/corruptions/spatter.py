"""Spatter: drops of water or of mud on the lens."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from vitrail.comparison.corruptions.filters import gaussian
from vitrail.comparison.corruptions.severities import Setting

_WATER = np.array([175, 238, 238]) / 255  # pale turquoise
# by squared length; OpenCV keeps 16 binary places
_STEPS = {square: np.float32(int(way * 65536) / 65536) for square, way in {1: 1, 2: 1.4, 5: 2.1969}.items()}
_MUD = np.array([63, 42, 20]) / 255


def spatter(image: np.ndarray, at: Setting) -> np.ndarray:
    """Smoothed noise above a threshold is liquid: water, lit at its rims, up to severity 3; mud, opaque, above."""
    mean, deviation, sigma, threshold, last, is_mud = at.values
    light = image.astype(np.float32) / 255.0
    liquid = gaussian(at.rng.normal(mean, deviation, light.shape[:2]), sigma * at.scale)
    liquid[liquid < threshold] = 0
    if is_mud:
        opaque = gaussian((liquid > threshold).astype(np.float32), last * at.scale)[..., None]
        opaque[opaque < 0.8] = 0
        return (light * (1 - opaque) + _MUD * opaque) * 255
    drops = (liquid * 255).astype(np.intp).astype(np.uint8)  # 256 becomes 0, as in the reference
    shine = (drops * rims(drops, 20 * at.scale))[..., None]
    return (light + shine / max(shine.max(), 1e-6) * last * _WATER) * 255


def rims(drops: np.ndarray, reach: float) -> np.ndarray:
    """Relief (H, W) of the distance from the drops' edges, up to `reach` pixels, lit from the upper left.

    The steps are those of the reference, which stretches the distances so far that it matters how they are measured.
    """
    distance = _chamfer(edges(drops, 50, 150), reach).astype(np.float64)
    mean = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.float32)  # 1.9999999999 is 2
    level = _equalised(mean.astype(np.uint8))
    relief = ndimage.correlate(level.astype(int), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return np.rint(ndimage.uniform_filter(np.clip(relief, 0, 255).astype(np.float64), 3, mode="mirror"))


def _chamfer(start: np.ndarray, reach: float) -> np.ndarray:
    """Way (H, W) to the nearest true pixel of `start`, at most `reach`, by steps to 16 neighbours of given lengths.

    Lengths 1, 1.4 and 2.1969: Borgefors, "Distance transformations in digital images", 1986, as in OpenCV.
    """
    steps = [(y, x, _STEPS[y * y + x * x]) for y in range(-2, 3) for x in range(-2, 3) if y * y + x * x in _STEPS]
    height, width = start.shape
    way = np.where(start, 0, reach).astype(np.float32)
    for _ in range(math.ceil(reach)):
        near = np.pad(way, 2, constant_values=reach)
        shorter = way.copy()
        for y, x, length in steps:
            np.minimum(shorter, near[2 + y : 2 + y + height, 2 + x : 2 + x + width] + length, out=shorter)
        if np.array_equal(shorter, way):
            break
        way = shorter
    return way


def _equalised(image: np.ndarray) -> np.ndarray:
    """`image` uint8 with its grey levels spread so that each is as frequent as the others; the darkest becomes 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    counts[image.min()] = 0
    return np.rint(counts.cumsum() * (255 / max(counts.sum(), 1))).astype(np.uint8)[image]


def edges(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Edges (H, W) of a uint8 image by the method of Canny ("A computational approach to edge detection", 1986).

    Sobel gradients, |gx| + |gy| larger than both neighbours across the edge and than `low`; lines that nowhere exceed
    `high` are dropped.
    """
    x, y = (ndimage.sobel(image.astype(int), axis, mode="nearest") for axis in (1, 0))
    size = np.abs(x) + np.abs(y)
    near = np.pad(size, 1)

    def beside(down: int, right: int) -> np.ndarray:
        return near[1 + down : 1 + down + size.shape[0], 1 + right : 1 + right + size.shape[1]]

    flat, steep = np.abs(y) < np.tan(np.pi / 8) * np.abs(x), np.abs(y) > np.tan(3 * np.pi / 8) * np.abs(x)
    rising = (x < 0) != (y < 0)
    ridge = np.where(
        flat,
        (size > beside(0, -1)) & (size >= beside(0, 1)),
        np.where(
            steep,
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            np.where(
                rising,
                (size > beside(-1, 1)) & (size > beside(1, -1)),
                (size > beside(-1, -1)) & (size > beside(1, 1)),
            ),
        ),
    )
    ridge &= size > low
    line, count = ndimage.label(ridge, np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[line[ridge & (size > high)]] = True
    strong[0] = False
    return strong[line]
