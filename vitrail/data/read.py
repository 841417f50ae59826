"""Image file -> uint8 tensor (3, H, W), the same pixels for training, scoring and serving; or one clear refusal.

The order is the safety: a regular file, not empty, begins with the magic bytes of a format on the list, dimensions
from the header below a ceiling, and only then are pixels decoded. Pillow reads headers and decodes. A JPEG in RGB or
grey is decoded by libjpeg-turbo without Pillow's detours (pictures.py), to the same pixels; Pillow has the last word
where libjpeg has as much as a warning, and reads the header where it says more than a size. (torchvision's PNG decoder
ends the process on a PNG with one damaged byte.) What a picture becomes:

    EXIF orientation      applied; values the standard does not define, and EXIF that cannot be parsed, are ignored
    grey, bilevel         three equal channels, 0..255
    16-bit grey           scaled to 8 bits, round(v / 257)
    16-bit RGB            Pillow keeps the high byte
    32-bit float          round(255 v) when every value lies in [0, 1], else refused; 32-bit integers are refused
    palette               its colours
    alpha                 blended on white, so what a transparent pixel hides is never seen
    CMYK, YCbCr           converted to RGB, Adobe's inverted CMYK included
    ICC profile           ignored
    GIF, TIFF             the first frame or page
    bytes after the end   ignored
    truncated             refused, never half grey
    damaged inside        a wrong checksum of the PNG header is refused, one of its pixel data is not checked; a JPEG
                          whose scan libjpeg can finish is the picture it finishes with
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from vitrail.data.pictures import Jpeg, Picture, Pixels, is_turned, read_frame, upright
from vitrail.errors import UserError

MAX_PIXELS = int(os.environ.get("VITRAIL_MAX_PIXELS", "178956970"))
"""Default ceiling on width x height: Pillow's own, a 512 MB RGB image. VITRAIL_MAX_PIXELS raises it for data sets."""

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_EXIF_ORIENTATION = 0x0112


class ImageError(UserError):
    """One image that cannot be read. `path` is its name, unchanged; `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives the way back from a worker process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


@dataclass(frozen=True)
class Header:
    """What a file says of itself: `format` as in `image_format`, Pillow's `mode`, stored size, is it turned by EXIF."""

    format: str
    mode: str
    width: int
    height: int
    turned: bool


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Reads the image at `path` as uint8 (3, H, W), RGB, upright.

    Raises ImageError for anything that is not a whole picture of at most `max_pixels` pixels: a folder, a named
    pipe, a file that is missing, forbidden, empty, truncated, damaged or of another kind.
    """
    with open_regular(path) as file:
        return decode_image(file, os.fspath(path), max_pixels=max_pixels)


def decode_image(data: bytes | BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decodes the bytes (or binary file) of an image to uint8 (3, H, W); `name` is what ImageError calls it.

    The three colours of a pixel lie side by side in memory, as they are stored and as they are resized fastest.
    """
    return open_picture(data, name, max_pixels=max_pixels).whole()


def open_picture(data: bytes | BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """An encoded image whose header has been read, and whose pixels are read when asked for, as a JPEG's can be.

    Raises ImageError as `decode_image` does, at once or when pixels are asked for.
    """
    data = _bytes_of_jpeg(data)
    if isinstance(data, bytes) and (frame := read_frame(data)) is not None:
        instead = partial(_decode_by_pillow, data, name, max_pixels)
        if frame.plain and frame.height * frame.width <= max_pixels:
            return Jpeg(data, frame, 1, instead)
        with _opened(data, name, max_pixels) as image:
            if image.mode in ("RGB", "L") and image.size == (frame.width, frame.height):
                return Jpeg(data, frame, _orientation(image), instead)
    return Pixels(_decode_by_pillow(data, name, max_pixels))


def _bytes_of_jpeg(data: bytes | BinaryIO) -> bytes | BinaryIO:
    """All bytes of a file that begins as a JPEG; of other formats less may be read than there is."""
    if isinstance(data, bytes):
        return data
    head = data.read(16)
    data.seek(0)
    return data.read() if image_format(head) == "JPEG" else data


def read_header(data: bytes | BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an encoded image, without decoding a pixel. Raises ImageError as `decode_image` does."""
    with _opened(data, name, max_pixels) as image:
        turned = is_turned(_orientation(image))
        return Header("JPEG" if image.format == "MPO" else str(image.format), image.mode, *image.size, turned)


def open_regular(path: str | Path, name: str = "") -> BinaryIO:
    """Opens a regular, non-empty file without ever waiting for a pipe. Raises ImageError, which says `name`."""
    name = name or os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ImageError(name, _why_not_opened(path, error)) from error
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode) and info.st_size:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ImageError(name, "the file is empty" if stat.S_ISREG(info.st_mode) else _kind(info.st_mode))


def image_format(head: bytes) -> str | None:
    """The format that the first 16 bytes of a file announce (JPEG, PNG, WEBP, BMP, GIF, TIFF), or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def _opened(data: bytes | BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        head = file.read(16)
        file.seek(0)
        form = image_format(head)
        if form is None:
            raise ImageError(name, _what_else(head))
        with _strict_pillow(max_pixels), Image.open(file, formats=[form]) as image:
            yield image
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, f"it has more than {max_pixels:,} pixels; raise max_pixels if you trust it") from error
    except Exception as error:  # on malformed bytes Pillow's readers raise nearly any type: all mean a damaged file
        raise ImageError(name, _why_not_decoded(error)) from error


_pillow = threading.Lock()


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    # Pillow keeps these settings, and Python its warning filters, in globals: hence the lock.
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _unlock_after_fork() -> None:
    global _pillow
    _pillow = threading.Lock()  # a thread of the parent may have held it; that thread does not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)


def _decode_by_pillow(data: bytes | BinaryIO, name: str, max_pixels: int) -> Tensor:
    """uint8 (3, H, W), upright."""
    with _opened(data, name, max_pixels) as image:
        image.load()
        return upright(torch.from_numpy(_rgb(image)).permute(2, 0, 1), _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is a file format of its own inside the picture; a broken one does not harm the pixels
        return 1


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded image of any mode."""
    if image.mode.startswith("I;16"):
        return _three((np.asarray(image).astype(np.uint32) + 128) // 257)
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("32-bit float values outside [0, 1]")
        return _three(np.rint(values * 255))
    if image.mode == "I":
        raise ValueError("32-bit integers have no agreed white")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _why_not_opened(path: str | Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the link points to nothing" if os.path.islink(path) else "there is no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if not isinstance(error, OSError):
        return f"{error}"
    return _kind(os.stat(path).st_mode) if os.path.exists(path) else f"{error.strerror}"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return f"it is a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file"


def _what_else(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        return "HEIC, AVIF or video is not read; convert it to JPEG or PNG"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"it is text, not a picture (it begins {head.decode('ascii')!r})"
    return "it is not a JPEG, PNG, WebP, BMP, GIF or TIFF picture"


def _why_not_decoded(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its header is damaged"
    words = " ".join(str(error).split()) or type(error).__name__
    return "the file is truncated" if "truncated" in words.lower() else f"it is damaged or of a kind not read ({words})"
