"""Parts of a picture have the pixels that the whole has there, and a JPEG those that Pillow finds, or its refusal."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from vitrail.data import pictures, read
from vitrail.data.pictures import Jpeg, Pixels, cut_to, read_frame
from vitrail.data.read import ImageError, decode_image, open_picture


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges and some noise."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin((x * (k + 1) + y * (3 - k)) / (9 + 4 * k)) for k in range(3)]
    waves[1][(x // 23 + y // 31) % 2 == 0] *= 0.4
    pixels = np.stack(waves, axis=2) + noise.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> torch.Tensor:
    return read._decode_by_pillow(data, "x", max_pixels=10**9)


KINDS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "rgb": {"keep_rgb": True},
    "coarse": {"quality": 20, "optimize": True},
    "comment": {"comment": b"hello", "dpi": (300, 300)},
}


@pytest.mark.parametrize("kind", [*KINDS, "grey"])
@pytest.mark.parametrize("side", [(1, 1), (33, 17), (16, 200), (150, 131)])
def test_pixels_are_pillows(kind: str, side: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(*side)
    data = jpeg(image.convert("L")) if kind == "grey" else jpeg(image, **KINDS[kind])
    expected = by_pillow(data)
    monkeypatch.setattr(read, "_decode_by_pillow", lambda *_: pytest.fail("it is called"))
    picture = open_picture(data, "x")
    assert isinstance(picture, Jpeg)
    assert (picture.height, picture.width) == side
    assert torch.equal(picture.whole(), expected)
    assert expected.shape == (3, *side)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_part_at_full_scale_is_that_part_of_the_whole(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    kind, orientation = data.draw(st.sampled_from(sorted(KINDS))), data.draw(st.integers(0, 9))
    picture = open_picture(jpeg(photograph(height, width), orientation, **KINDS[kind]), "x")
    expected = by_pillow(picture.data)  # type: ignore[attr-defined]
    assert expected.shape[1:] == (picture.height, picture.width)
    for _ in range(3):  # each asks the same picture again, as copies do
        top, left = data.draw(st.integers(0, picture.height - 1)), data.draw(st.integers(0, picture.width - 1))
        h, w = data.draw(st.integers(1, picture.height - top)), data.draw(st.integers(1, picture.width - left))
        part = picture.region((top, left, h, w), max(h, w))
        assert torch.equal(part, expected[:, top : top + h, left : left + w])
        assert torch.equal(part, Pixels(expected).region((top, left, h, w), 1))
    assert torch.equal(picture.whole(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("least", [20, 40, 80, 81])
def test_a_large_part_is_decoded_at_the_smallest_scale_that_is_large_enough(orientation: int, least: int) -> None:
    scale = {20: 8, 40: 4, 80: 2, 81: 1}[least]
    image = photograph(40, 48).resize((408, 400), Image.Resampling.BICUBIC)
    picture = open_picture(jpeg(image, orientation, quality=95), "x")
    whole = by_pillow(picture.data).float()  # type: ignore[attr-defined]

    def unlike(top: int, left: int) -> float:
        part = picture.region((top, left, 160, 240), least)
        assert part.shape == (3, 160 // scale, 240 // scale)
        there = whole[:, 80 : 80 + 160, 104 : 104 + 240]
        return float((part - F.avg_pool2d(there, scale)).abs().mean())

    here, near = unlike(80, 104), unlike(80 + scale // 2 - 1, 104 + scale // 2 - 1)
    assert here < 1.5, "the same place, averaged"
    assert here <= near < 6, "to the nearest pixel"
    assert unlike(88, 104) > 2 * max(here, 1)


def test_rows_below_the_part_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def note(data: bytes, *arguments: object, decode=pictures.simplejpeg.decode_jpeg, **options: object) -> np.ndarray:  # type: ignore[no-untyped-def]
        decoded.append(decode(data, *arguments, **options).shape[:2])
        return decode(data, *arguments, **options)

    monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", note)
    box = (8, 8, 100, 100)
    for kind, rows in (("420", 112), ("progressive", 300)):  # the whole of what is stored in passes is needed
        open_picture(jpeg(photograph(300, 200), **KINDS[kind]), "x").region(box, 100)
        assert decoded.pop() == (rows, 200)
    picture = open_picture(jpeg(photograph(300, 200)), "x")
    for _ in range(3):
        picture.region(box, 100)
    assert decoded == [(112, 200)], "decoded once for several copies"
    picture.region((200, 0, 80, 80), 80)
    picture.region((220, 0, 80, 80), 80)
    assert decoded == [(112, 200), (300, 200)], "to its end when more is asked for"


def test_a_truncated_jpeg_is_refused_whatever_part_is_asked_for() -> None:
    whole = jpeg(photograph(300, 200))
    for end in (len(whole) // 2, len(whole) - 300, len(whole) - 2):
        picture = open_picture(whole[:end], "half.jpg")
        with pytest.raises(ImageError, match=r"half\.jpg: the file is truncated"):
            picture.region((0, 0, 20, 20), 20)
    after = open_picture(whole + b"\0more", "x")
    assert torch.equal(after.region((0, 0, 20, 20), 20), by_pillow(whole)[:, :20, :20]), "bytes after the end"


def test_where_libjpeg_warns_pillow_decides() -> None:
    whole = bytearray(jpeg(photograph(120, 120)))
    whole[len(whole) // 2 : len(whole) // 2 + 4] = b"\xff\x00\xff\xd3"  # a restart marker that nobody announced
    data = bytes(whole)
    assert torch.equal(decode_image(data, "x"), by_pillow(data))
    cmyk = jpeg(photograph(20, 30).convert("CMYK"))
    assert read_frame(cmyk) is None
    assert torch.equal(decode_image(cmyk, "x"), by_pillow(cmyk))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_damaged_jpeg_is_pillows_picture_or_refused_by_both(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    content = bytearray(jpeg(photograph(40, 56), **KINDS[kind]))
    head = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 700 if head else 10**6) - 1))] = data.draw(
            st.integers(0, 255)
        )
    damaged = bytes(content)
    found, expected = _outcome(decode_image, damaged), _outcome(read._decode_by_pillow, damaged)
    assert isinstance(found, str) == isinstance(expected, str)
    assert isinstance(found, str) or torch.equal(found, expected)  # type: ignore[arg-type]


def _outcome(decode: Callable[..., torch.Tensor], data: bytes) -> torch.Tensor | str:
    try:
        return decode(data, "x", max_pixels=10**6)
    except ImageError as error:
        return error.reason


def test_what_a_frame_says() -> None:
    image = photograph(30, 50)
    for (kind, options), orientation in itertools.product(KINDS.items(), (1, 6)):
        data = jpeg(image, orientation, **options)
        frame = read_frame(data)
        assert frame is not None
        assert frame[:2] == (30, 50)
        assert frame.sequential == (kind != "progressive")
        assert frame.plain == (orientation == 1 and kind != "rgb"), "EXIF and Adobe's colours are Pillow's to read"
        assert read_frame(cut_to(data, frame, 16)) == frame._replace(height=16)
        assert read_frame(data[: frame.place]) is None
    assert read_frame(b"") is None


def test_the_ceiling_holds_for_jpegs() -> None:
    data = jpeg(photograph(30, 50))
    assert decode_image(data, "x", max_pixels=1500).shape == (3, 30, 50)
    for open_one in (decode_image, open_picture):
        with pytest.raises(ImageError, match="more than 1,499 pixels"):
            open_one(data, "x", max_pixels=1499)
