"""The corruptions of ImageNet-C: what each must do by its definition, and that they stay what they are.

`references/corruption_digests.json` holds 6 x 6 pixels of every corruption, severity and size as they were when they
agreed with the authors' code (docs/corruptions.md). Not hashes: a sum in another order moves a pixel by one grey level
where values are cut off to 8 bits, and JPEG's decoder is the machine's. The mean difference may be half a level, for
JPEG two. To renew it: `python tests/test_corruptions.py`.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from vitrail.comparison.corruptions import (
    CORRUPTIONS,
    EXTRA,
    GROUPS,
    blur,
    corrupt,
    digital,
    filters,
    spatter,
    spoil,
    weather,
)
from vitrail.comparison.corruptions.severities import TABLES, setting
from vitrail.errors import UserError

NAMES = CORRUPTIONS + EXTRA
DIGESTS = Path(__file__).parent / "references" / "corruption_digests.json"
SIZES = (32, 64, 224)  # those that parameters were published for
STILL = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}


def painting(height: int, width: int) -> np.ndarray:
    """A picture without chance: two gradients, rings, a bright and a black square."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    rings = 0.5 + 0.5 * np.sin(60 * np.hypot(y - 0.4, x - 0.6) ** 1.5)
    image = np.stack([y, 0.2 + 0.6 * rings * x, 1 - 0.7 * x], 2)
    image[height // 8 : height // 3, width // 8 : width // 3] = (1, 0.9, 0.6)
    image[-height // 4 :, : width // 4] = 0
    return (image * 255).astype(np.uint8)


def digest(side: int, name: str) -> list[np.ndarray]:
    """6 x 6 pixels of every severity, (108,)."""
    image, places = painting(side, side), np.linspace(0, side - 1, 6).astype(int)
    return [corrupt(image, name, severity, seed=7)[np.ix_(places, places)].ravel() for severity in range(1, 6)]


def grey(level: float, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), level, dtype=np.uint8)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[np.ndarray]:
    """Three photographs of 96 x 96 pixels."""
    found = []
    with tarfile.open(shared_data / "photos.tar") as archive:
        for name in ("n01440764_tench", "n01531178_goldfinch", "n01608432_kite"):
            file = archive.extractfile(f"{name}.jpg")
            assert file
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            found.append(np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR)))
    return found


# ---------------------------------------------------------------------- all of them


def test_names() -> None:
    assert (len(CORRUPTIONS), len(EXTRA), len(set(NAMES))) == (15, 4, 19)
    assert [name for names in GROUPS.values() for name in names] == list(CORRUPTIONS)
    assert all(set(table) == set(NAMES) and {len(row) for row in table.values()} == {5} for table in TABLES.values())


@pytest.mark.parametrize("name", NAMES)
def test_as_they_were(name: str) -> None:
    stored = json.loads(DIGESTS.read_text())
    for side in SIZES:
        for now, then in zip(digest(side, name), stored[str(side)][name], strict=True):
            off = np.abs(now.astype(int) - np.frombuffer(bytes.fromhex(then), np.uint8)).mean()
            assert off <= (2 if name == "jpeg_compression" else 0.5), side


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_its_arguments(name: str) -> None:
    """The same again whatever the global generators did, the argument untouched; another with another seed."""
    image = painting(48, 37)
    before = image.copy()
    for severity in range(1, 6):
        np.random.seed(severity)
        first = corrupt(image, name, severity, seed=3)
        assert (first.shape, first.dtype) == (image.shape, np.uint8)
        assert np.array_equal(first, corrupt(image, name, severity, seed=3))
        assert np.array_equal(image, before)
        assert np.array_equal(first, corrupt(image, name, severity, seed=4)) == (name in STILL)


@pytest.mark.parametrize("name", NAMES)
def test_stronger_is_further_away(name: str, photos: list[np.ndarray]) -> None:
    """On average, by the same draws. Saturation falls, then rises; water turns to mud; glass_blur has more passes, then
    longer ways; elastic_transform goes from large maps to fine ripples, which are nearer pixel by pixel."""
    far = np.zeros(5)
    for seed, photo in enumerate(photos):
        for severity in range(1, 6):
            at = setting(name, severity, photo.shape, np.random.default_rng(seed))
            far[severity - 1] += distance(photo, spoil(photo, name, at)) / len(photos)
    assert far.min() > 1
    kinds = {"saturate": [far[:2], far[2:]], "spatter": [far[:3], far[3:]], "elastic_transform": []}
    kinds["glass_blur"] = [far[::4]]
    for run in kinds.get(name, [far]):
        assert (run[1:] > 0.98 * run[:-1]).all(), far
        assert run[-1] > 1.1 * run[0], far


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 5), st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**40))
def test_any_size(name: str, severity: int, height: int, width: int, seed: int) -> None:
    image = painting(height, width)
    assert corrupt(image, name, severity, seed).shape == image.shape
    assert corrupt(np.ascontiguousarray(image[::-1])[::-1], name, severity, seed).shape == image.shape


@pytest.mark.parametrize("name", NAMES)
def test_black_and_white_images(name: str) -> None:
    """Where divisions by the brightest, or by the spread, would fail; warnings are errors."""
    for level in (0, 255):
        for severity in range(1, 6):
            assert corrupt(grey(level, 33), name, severity).shape == (33, 33, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "gausian_noise"}, "no corruption 'gausian_noise'; did you mean 'gaussian_noise'"),
        ({"name": "xyz"}, "no corruption 'xyz'; choose one of gaussian_noise, shot_noise"),
        ({"severity": 0}, "severity of fog is 0; give a whole number from 1"),
        ({"severity": 2.5}, "severity of fog is 2.5"),
        ({"severity": True}, "severity of fog is True"),
        ({"seed": -1}, "seed of fog is -1; give a whole number"),
        ({"seed": 0.5}, "seed of fog is 0.5"),
        ({"image": np.zeros((32, 32), np.uint8)}, r"uint8 array \(H, W, 3\), not uint8 \(32, 32\); convert"),
        ({"image": np.zeros((32, 32, 3))}, r"not float64 \(32, 32, 3\)"),
        ({"image": "photo.jpg"}, "not str"),
        ({"image": np.zeros((7, 9, 3), np.uint8)}, "at least 8 x 8 pixels, not 9 x 7; enlarge"),
    ],
)
def test_mistakes(change: dict, sentence: str) -> None:
    arguments = {"image": painting(32, 32), "name": "fog", "severity": 1, "seed": 0} | change
    with pytest.raises(UserError, match=sentence):
        corrupt(arguments["image"], arguments["name"], arguments["severity"], arguments["seed"])


def test_the_table_of_the_nearest_size() -> None:
    rng = np.random.default_rng()
    for side, native in {8: 32, 32: 32, 45: 32, 46: 64, 64: 64, 119: 64, 120: 224, 224: 224, 600: 224}.items():
        at = setting("contrast", 2, (side, 2 * side), rng)
        assert (at.values, at.scale) == ((TABLES[native]["contrast"][1],), side / native)


def test_blur_grows_with_the_image() -> None:
    """The same picture at twice the size, blurred and halved again, is the blurred picture."""
    large = painting(448, 448)
    small = np.asarray(Image.fromarray(large).resize((224, 224), Image.Resampling.BOX))
    for name in ("defocus_blur", "gaussian_blur", "zoom_blur"):
        halved = Image.fromarray(corrupt(large, name, 3)).resize((224, 224), Image.Resampling.BOX)
        assert distance(np.asarray(halved), corrupt(small, name, 3)) < 0.15 * distance(corrupt(small, name, 3), small)


# ---------------------------------------------------------------------- noise


def test_noise_is_as_strong_as_the_table_says() -> None:
    image = grey(102, 200)  # 0.4
    for severity in range(1, 6):
        at = {name: TABLES[224][name][severity - 1] for name in ("shot_noise", "impulse_noise")}
        counts = corrupt(image, "shot_noise", severity).astype(float) / 255
        assert counts.var() == pytest.approx(0.4 / at["shot_noise"], rel=0.05 if severity < 4 else 0.25)
        changed = corrupt(image, "impulse_noise", severity)
        assert np.mean(changed != 102) == pytest.approx(at["impulse_noise"], rel=0.05)
        assert np.mean(changed == 255) == pytest.approx(at["impulse_noise"] / 2, rel=0.05)
        assert np.mean(changed == 0) == pytest.approx(at["impulse_noise"] / 2, rel=0.05)
    assert corrupt(image, "gaussian_noise", 1).std() == pytest.approx(0.08 * 255, rel=0.02)
    assert corrupt(image, "speckle_noise", 1).std() == pytest.approx(0.15 * 102, rel=0.02)
    assert not corrupt(grey(0), "speckle_noise", 5).any()


# ---------------------------------------------------------------------- blur


def test_a_point_out_of_focus_is_a_disk() -> None:
    image = grey(0, 224)
    image[112, 112] = 255
    y, x = np.mgrid[-112:112, -112:112]
    for severity, radius in enumerate((3, 4, 6, 8, 10), 1):
        inside = (y**2 + x**2) <= radius**2
        seen = blur.defocus_blur(image, setting("defocus_blur", severity, image.shape, np.random.default_rng()))[..., 0]
        assert seen[(y**2 + x**2) <= (radius - 2) ** 2] == pytest.approx(255 / inside.sum(), rel=1e-3)
        assert np.abs(seen[(y**2 + x**2) > (radius + 3) ** 2]).max() < 1e-9
        # disk and grid of one size: the reference's sum is 1.3 % and 1.1 % too large
        assert seen.sum() / 255 == pytest.approx({8: 1.013, 10: 1.0108}.get(radius, 1), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 20), st.integers(8, 20), st.integers(1, 3), st.integers(0, 2**32))
def test_glass_copies_in_the_order_of_the_reference(height: int, width: int, reach: int, seed: int) -> None:
    """The chain followed for all pixels at once is the loop over pixels."""
    where = blur._neighbours(height, width, reach, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    steps = iter(rng.integers(-reach, reach, (len(rows) * len(columns), 2)))
    pixels = np.arange(height * width).reshape(height, width)
    for row in rows:
        for column in columns:
            dx, dy = next(steps)
            pixels[row, column] = pixels[row + dy, column + dx]
    assert np.array_equal(where.reshape(height, width), pixels)


def test_drag_of_a_point() -> None:
    """Half a Gaussian, to the left for angle 0, along the diagonal for 45 degrees."""
    image = np.zeros((41, 41), np.uint8)
    image[20, 20] = 255
    weights = np.exp(-(np.arange(9) ** 2) / 8)
    weights /= weights.sum()
    flat, slanted = (filters.dragged(image, 4, 2, angle) for angle in (0, 45))
    assert np.array_equal(flat[20, 20:11:-1], np.floor(255 * weights))
    assert flat.sum() == np.floor(255 * weights).sum()
    assert np.array_equal(np.flatnonzero(slanted), np.flatnonzero(np.eye(41) * (slanted > 0)))


def test_enlarged_is_the_zoom_of_scipy() -> None:
    image = np.random.default_rng(0).random((60, 60, 3))
    for factor in (1.0, 1.01, 1.3, 2.5):
        crop = int(np.ceil(60 / factor))
        top = (60 - crop) // 2
        whole = ndimage.zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
        trim = (len(whole) - 60) // 2
        expected = whole[trim : trim + 60, trim : trim + 60]
        assert np.abs(filters.enlarged(image, factor) - expected)[:-1, :-1].max() < 1e-12


# ---------------------------------------------------------------------- weather


def test_plasma() -> None:
    land = weather.plasma(64, 2.0, np.random.default_rng(0))
    assert (land.shape, land.min(), land.max()) == ((64, 64), 0, 1)
    rough = weather.plasma(64, 1.2, np.random.default_rng(0))
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(land)).mean()
    wraps = np.abs(land[:, 0] - land[:, -1]).mean() / np.abs(np.diff(land)).mean()
    assert 0.3 < wraps < 3


def test_weather_of_plain_images() -> None:
    """Fog keeps within the image's range, brightness adds its c, snow and frost lighten the dark."""
    dark = grey(51)
    assert corrupt(dark, "fog", 3).max() <= 51
    for severity in range(1, 6):
        assert set(np.unique(corrupt(dark, "brightness", severity))) == {int((0.2 + severity / 10) * 255 + 1e-6)}
        assert corrupt(dark, "snow", severity).min() >= 51
        assert corrupt(dark, "frost", severity).mean() > 51


def test_frost_is_its_sum() -> None:
    """Black shows the texture alone; the difference to another image is a x."""
    for severity in range(1, 6):
        share = TABLES[64]["frost"][severity - 1][0]
        bare, over = (corrupt(grey(level), "frost", severity).astype(float) for level in (0, 40))
        assert np.abs(over - bare - 40 * share).max() <= 1


# ---------------------------------------------------------------------- digital


def test_contrast_and_saturation() -> None:
    image = painting(120, 130)
    means = image.mean((0, 1))
    for severity, factor in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1):
        expected = (image - means) * factor + means
        off = expected - corrupt(image, "contrast", severity)
        assert -1e-6 < off.min() < off.max() < 1 + 1e-6
    # value stays, and with less saturation the other channels rise towards it
    pale = corrupt(image, "saturate", 2)
    assert np.abs(pale.max(2).astype(int) - image.max(2)).max() <= 1
    assert np.ptp(pale, 2).mean() == pytest.approx(0.1 * np.ptp(image, 2).mean(), abs=1)


def test_smooth_is_the_gaussian_of_scipy() -> None:
    values = np.random.default_rng(0).random((40, 51))
    for sigma in (0.0, 0.4, 3.0, 60.0):
        expected = ndimage.gaussian_filter(values, sigma, mode="reflect", truncate=3) if sigma else values
        assert np.abs(digital._smooth(values, max(sigma, 1e-9)) - expected).max() < 1e-12


def test_the_affine_part_moves_three_points() -> None:
    places = np.indices((64, 80), dtype=float)
    assert np.abs(digital._affine(places, 21, 0.0, np.random.default_rng(0)) - places).max() < 1e-9
    moved = np.random.default_rng(5).uniform(-3, 3, (3, 2))
    back = digital._affine(places, 21, 3.0, np.random.default_rng(5))
    for (right, down), (dx, dy) in zip([(21, 21), (21, -21), (-21, -21)], moved, strict=True):
        x, y = 40 + right, 32 + down
        seen = [ndimage.map_coordinates(plane, [[y + dy], [x + dx]], order=1)[0] for plane in back]
        assert seen == pytest.approx([y, x], abs=1e-6)


def test_pixels_become_coarse() -> None:
    image = painting(224, 224)
    coarse = corrupt(image, "pixelate", 5)
    assert np.array_equal(coarse, coarse[::4, ::4].repeat(4, 0).repeat(4, 1))


# ---------------------------------------------------------------------- spatter


def test_edges_of_a_square() -> None:
    image = np.zeros((30, 30), np.uint8)
    image[10:20, 10:20] = 200
    found = spatter.edges(image, 50, 150)
    assert 30 <= found.sum() <= 40
    assert not found[12:18, 12:18].any()
    assert ndimage.label(found, np.ones((3, 3)))[1] == 1
    assert not spatter.edges(image // 20, 50, 150).any()


def test_way_to_the_nearest_edge() -> None:
    start = np.zeros((31, 31), bool)
    start[15, 15] = True
    way = spatter._chamfer(start, 10)
    assert way[15, 10:16] == pytest.approx([5, 4, 3, 2, 1, 0])
    assert (way[14, 14], way[13, 14], way[0, 0]) == pytest.approx((1.4, 2.1969, 10), rel=1e-5)
    exact = np.minimum(ndimage.distance_transform_edt(~start), 10)
    assert np.abs(way - exact).max() < 0.25


if __name__ == "__main__":
    kept = {side: {name: [row.tobytes().hex() for row in digest(side, name)] for name in NAMES} for side in SIZES}
    DIGESTS.write_text(json.dumps(kept, indent=1) + "\n")
