"""What processing does: contrast, saturation, elastic displacement, coarse pixels, JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import fft, ndimage

from vitrail.comparison.corruptions.severities import Setting


def contrast(image: np.ndarray, at: Setting) -> np.ndarray:
    """Shrunk towards the mean colour of the image."""
    (factor,) = at.values
    light = image / 255.0
    means = light.mean((0, 1), keepdims=True)
    return ((light - means) * factor + means) * 255


def saturate(image: np.ndarray, at: Setting) -> np.ndarray:
    """The saturation of HSV becomes a s + b: paler at severities 1 and 2, more colourful from 3 on."""
    factor, more = at.values
    hsv = rgb_to_hsv(image / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    return hsv_to_rgb(hsv) * 255


def elastic_transform(image: np.ndarray, at: Setting) -> np.ndarray:
    """A random affine map that moves three points, then a smooth random displacement of every pixel."""
    height, width = image.shape[:2]
    side = min(height, width)
    strength, sigma, affine = (value * side for value in at.values)
    places = np.indices((height, width), dtype=np.float64)
    light = _sampled(image.astype(np.float32) / 255.0, _affine(places, side // 3, affine, at.rng), "mirror")
    if strength:
        # the reference draws and moves x before y
        across = _smooth(at.rng.uniform(-1, 1, (height, width)), sigma) * strength
        places += _smooth(at.rng.uniform(-1, 1, (height, width)), sigma) * strength, across
    return _sampled(light, places, "reflect") * 255


def _affine(places: np.ndarray, arm: int, most: float, rng: np.random.Generator) -> np.ndarray:
    """Where `places` (2, H, W) come from when three points `arm` pixels around the centre move by up to `most` each."""
    centre = np.array([places.shape[2] // 2, places.shape[1] // 2])  # x, y
    before = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-most, most, before.shape)
    back = np.linalg.solve(np.c_[after, np.ones(3)], before)  # (x', y', 1) -> (x, y)
    y, x = places
    return np.stack([x * back[0, 1] + y * back[1, 1] + back[2, 1], x * back[0, 0] + y * back[1, 0] + back[2, 0]])


def _sampled(image: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """`image` (H, W, C) at `places` (2, H, W), y and x, linearly between pixels."""
    planes = [ndimage.map_coordinates(plane, places, order=1, mode=mode) for plane in image.transpose(2, 0, 1)]
    return np.stack(planes, 2)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of `values` (H, W), cut off at 3 sigma, edges reflected.

    The kernel is often wider than the image. Under this reflection a symmetric kernel is a factor for each coefficient
    of the cosine transform, so its width costs nothing.
    """
    taps = np.arange(1, int(3 * sigma + 0.5) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    factors = [
        (1 + 2 * np.cos(np.pi / size * np.outer(np.arange(size), taps)) @ weights) / (1 + 2 * weights.sum())
        for size in values.shape
    ]
    return fft.idctn(fft.dctn(values) * np.outer(*factors))


def pixelate(image: np.ndarray, at: Setting) -> np.ndarray:
    """Shrunk by averaging, then each pixel repeated."""
    (share,) = at.values
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, at: Setting) -> np.ndarray:
    (quality,) = at.values
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))
