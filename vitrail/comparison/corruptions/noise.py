"""Noise of every pixel and channel for itself: Gaussian, of photons, dead pixels, and in proportion to the light."""

from __future__ import annotations

import numpy as np

from vitrail.comparison.corruptions.severities import Setting


def gaussian_noise(image: np.ndarray, at: Setting) -> np.ndarray:
    """x + N(0, c), with x in [0, 1]: little light, or a warm sensor."""
    (deviation,) = at.values
    light = image / 255.0
    return (light + at.rng.normal(0.0, deviation, light.shape)) * 255


def shot_noise(image: np.ndarray, at: Setting) -> np.ndarray:
    """Poisson(c x) / c: a sensor where white is `c` photons."""
    (photons,) = at.values
    return np.minimum(at.rng.poisson(image / 255.0 * photons) / photons, 1) * 255


def impulse_noise(image: np.ndarray, at: Setting) -> np.ndarray:
    """A share `c` of the values becomes 0 or 255, one as often as the other: salt and pepper, channel by channel."""
    (share,) = at.values
    hit = at.rng.random(image.shape) <= share
    white = at.rng.random(image.shape) <= 0.5
    return np.where(hit, np.where(white, 255, 0), image)


def speckle_noise(image: np.ndarray, at: Setting) -> np.ndarray:
    """x + x N(0, c): the brighter, the noisier."""
    (deviation,) = at.values
    light = image / 255.0
    return (light + light * at.rng.normal(0.0, deviation, light.shape)) * 255
