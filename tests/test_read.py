"""`read_image` reads or refuses every odd file as the shared manifest says, and never dies, hangs or warns."""

from __future__ import annotations

import io
import json
import os
import pickle
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vitrail.data.read import ImageError, decode_image, image_format, read_header, read_image

COMPRESSION = 4.5  # grey levels of mean absolute difference that lossy compression explains


def hostile() -> list[dict]:
    manifest = Path(os.environ.get("VITRAIL_DATA", ""), "hostile", "manifest.json")
    return json.loads(manifest.read_text(encoding="utf-8"))["files"] if manifest.is_file() else []


def encode(array: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("entry", hostile(), ids=lambda entry: entry["file"])
def test_hostile_file(entry: dict, shared_data: Path) -> None:
    path = shared_data / "hostile" / entry["file"]
    if entry["expect"] in ("reject", "tar"):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert entry["file"] in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.path == str(path)
        return
    image = read_image(path)
    width, height = entry.get("upright_size", entry["size"])
    assert image.dtype == torch.uint8
    assert image.shape == (3, height, width)
    if "compare" in entry:
        reference = read_image(shared_data / "hostile" / entry["compare"])
        assert (image.float() - reference.float()).abs().mean() < COMPRESSION


def test_hostile_list_is_whole(shared_data: Path) -> None:
    assert len(hostile()) == 40
    assert (shared_data / "hostile").is_dir()


def test_odd_modes_look_right(shared_data: Path) -> None:
    read = {p.name: read_image(p).float() for p in (shared_data / "hostile").glob("*.*") if "bomb" not in p.name
            and p.suffix in (".png", ".tif", ".gif", ".bmp", ".webp") and "crc" not in p.name}  # fmt: skip
    half = torch.nn.functional.avg_pool2d(read["reference_upright.png"], 2)
    assert (read["rgb16.png"] - half).abs().mean() < 3
    grey16 = read["grey16.png"]
    assert (grey16[0] == grey16[1]).all()
    assert 0.2 < (grey16 < 128).float().mean() < 0.8
    assert set(read["bilevel.png"].unique().tolist()) == {0.0, 255.0}
    assert read["one_pixel.png"].flatten().tolist() == [12, 34, 56]
    assert (read["rgba_hidden_noise.png"][:, 55:65, 75:85] == 255).all(), "a clear middle is white, its noise unseen"
    assert read["palette_transparent.png"].unique().numel() > 10
    assert 100 < read["float32.tif"].mean() < 160
    assert read["float32.tif"].max() > 250


def test_a_wrong_checksum_of_pixel_data_is_not_checked(shared_data: Path) -> None:
    image = read_image(shared_data / "hostile" / "bad_crc_idat.png")
    assert image.float().std() > 10


def test_bombs_take_no_memory_and_the_limit_can_be_raised(shared_data: Path, tmp_path: Path) -> None:
    tracemalloc.start()
    for name in ("bomb_header_50000.png", "bomb_valid_16000.png"):
        with pytest.raises(ImageError, match="max_pixels"):
            read_image(shared_data / "hostile" / name)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    (tmp_path / "a.png").write_bytes(encode(scene(), "PNG"))
    with pytest.raises(ImageError, match="more than 767 pixels"):
        read_image(tmp_path / "a.png", max_pixels=24 * 32 - 1)
    assert read_image(tmp_path / "a.png", max_pixels=24 * 32).shape == (3, 24, 32)


def test_the_user_may_raise_the_limit_above_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(encode(scene(), "PNG"), "a.png", max_pixels=1000).shape == (3, 24, 32)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_truncation_is_refused_whatever_pillow_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        whole = encode(scene(), form)
        with pytest.raises(ImageError, match=r"half\.img"):
            decode_image(whole[: len(whole) * 2 // 3], "half.img")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    assert decode_image(encode(values, "PNG"), "a")[0].tolist() == [[0, 0, 1, 1, 128, 255]]
    assert decode_image(encode(values, "TIFF"), "a")[1].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_floats_are_scaled_or_refused() -> None:
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert decode_image(encode(values, "TIFF"), "a")[0].tolist() == [[0, 128, 255]]
    for bad in (values * 2, values - 1, values * np.nan):
        with pytest.raises(ImageError, match="float"):
            decode_image(encode(bad, "TIFF"), "a")
    with pytest.raises(ImageError, match="white"):
        decode_image(encode(np.array([[70000]], dtype=np.int32), "TIFF"), "a")


def test_alpha_is_blended_on_white() -> None:
    pixel = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], dtype=np.uint8)
    image = decode_image(encode(pixel, "PNG"), "a").permute(1, 2, 0)
    assert image.tolist() == [[[255, 255, 255], [255, 0, 0], [127, 127, 127]]]


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_orientation_is_applied_once(form: str, orientation: int) -> None:
    upright = Image.fromarray(scene(32, 48))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each turn, as Pillow's Transpose numbers
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, form, exif=exif)
    image = decode_image(buffer.getvalue(), "a")
    assert image.shape == (3, 32, 48)
    assert (image.float() - torch.from_numpy(scene(32, 48)).permute(2, 0, 1).float()).abs().mean() < 12
    assert read_header(buffer.getvalue(), "a").turned == (orientation in undo)


def test_what_is_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("gone.jpg", tmp_path / "dead.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    (tmp_path / "album.jpg").mkdir()
    reasons = {
        "pipe.jpg": "named pipe",
        "dead.jpg": "link",
        "loop.jpg": "symbolic links",
        "album.jpg": "folder",
        "no.jpg": "no such",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(scene(), "JPEG"))
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(ImageError, match="permission"):
        read_image(tmp_path / "a.jpg")


def test_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a\nb.jpg", "the file is empty")))
    assert (error.path, error.reason) == ("a\nb.jpg", "the file is empty")
    assert str(error) == "cannot read image a\nb.jpg: the file is empty"


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]))
    content = bytearray(encode(scene(12, 16), form))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content), "a", max_pixels=10_000)
    except ImageError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def test_threads_leave_the_warning_filters_alone() -> None:
    content, before = encode(scene(), "PNG"), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_image(content, "a") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize(("head", "form"), [(b"RIFF1234WEBPVP8 ", "WEBP"), (b"RIFF1234WAVEfmt ", None), (b"", None)])
def test_image_format(head: bytes, form: str | None) -> None:
    assert image_format(head) == form
