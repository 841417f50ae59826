"""Blur: a lens out of focus, frosted glass, a moving camera, a camera that comes nearer, and the plain Gaussian."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from vitrail.comparison.corruptions.filters import dragged, enlarged, gaussian
from vitrail.comparison.corruptions.severities import Setting


def gaussian_blur(image: np.ndarray, at: Setting) -> np.ndarray:
    (sigma,) = at.values
    return gaussian(image / 255.0, sigma * at.scale) * 255


def defocus_blur(image: np.ndarray, at: Setting) -> np.ndarray:
    """The mean over a disk: how a lens draws a point that is out of focus."""
    radius, soft = (value * at.scale for value in at.values)
    # at the published sizes the reference's grid; at others with room for the softened edge
    reach = max(8, math.ceil(radius)) + (0 if at.scale == 1 else 2)
    kernel = disk(radius, soft, reach)
    padded = np.pad(image / 255.0, [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)) * 255


def disk(radius: float, soft: float, reach: int) -> np.ndarray:
    """A disk of `radius` pixels on a grid from -reach to reach, its edge softened by a Gaussian of 3 or 5 taps.

    As in the reference the softening reflects at the grid's border, so where disk and grid are of one size the sum is
    not quite 1. Its numbers have single precision, again as there: they decide which way ties are cut off.
    """
    places = np.arange(-reach, reach + 1)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float32)
    inside /= inside.sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(taps**2) / (2 * soft**2))
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, weights / weights.sum(), axis, mode="mirror")
    return inside.astype(np.float64)


def glass_blur(image: np.ndarray, at: Setting) -> np.ndarray:
    """Smoothed, then every pixel replaced by one near it, some times over, then smoothed again."""
    sigma, reach, times = at.values[0] * at.scale, max(1, int(at.values[1] * at.scale)), int(at.values[2])
    pixels = (gaussian(image / 255.0, sigma) * 255).astype(np.uint8)
    for _ in range(times):
        pixels = pixels.reshape(-1, 3)[_neighbours(image.shape[0], image.shape[1], reach, at.rng)].reshape(image.shape)
    return gaussian(pixels / 255.0, sigma) * 255


def _neighbours(height: int, width: int, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Where every pixel comes from, as flat indices: one pass over the image from the lower right corner upwards.

    The reference means to swap a pixel with one up to `reach` away, but its two sides are views of one numpy array, so
    what it does is copy: x[h, w] = x[h + dy, w + dx]. A pixel that was visited before hands on what it received. That
    chain is followed for all pixels at once by doubling, exactly.
    """
    rows = np.arange(height - reach, reach, -1)[:, None]
    columns = np.arange(width - reach, reach, -1)
    steps = rng.integers(-reach, reach, (rows.size * columns.size, 2)).reshape(rows.size, columns.size, 2)
    here = rows * width + columns
    source = np.arange(height * width)
    source[here] = here + steps[..., 1] * width + steps[..., 0]
    visited = np.zeros(height * width, dtype=bool)
    visited[here] = True
    index = np.flatnonzero(visited & visited[source] & (source > np.arange(height * width)))
    open_ = np.zeros(height * width, dtype=bool)  # pixels whose source is itself not yet what it will hand on
    open_[index] = True
    while index.size:
        through = source[index]
        source[index], open_[index] = source[through], open_[through]
        index = index[open_[index]]
    return source


def motion_blur(image: np.ndarray, at: Setting) -> np.ndarray:
    """Dragged along a line at most 45 degrees off the horizontal."""
    radius, sigma = (value * at.scale for value in at.values)
    return dragged(image, radius, sigma, at.rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, at: Setting) -> np.ndarray:
    """The mean of the image and of its enlargements 1, 1 + step, ...: a camera that moves towards the scene."""
    factors = np.arange(1, *at.values)
    light = (image / 255.0).astype(np.float32)
    total = np.zeros_like(light)
    for factor in factors:
        total += enlarged(light, factor).astype(np.float32)
    return (light + total) / (len(factors) + 1) * 255
