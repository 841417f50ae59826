"""A picture whose size is known and whose pixels are decoded when they are asked for, no more of them than needed.

Training looks at a random part of a photograph at a few hundred pixels, and decoding is most of what that costs. So the
part is chosen first, from the size that the header says, and a JPEG is then decoded

    at a scale    1/2, 1/4 or 1/8, of which libjpeg decodes a block to fewer pixels: the smallest at which the part
                  still has the pixels that are wanted on both sides, so that only shrinking is left to do
    to a row      the last of the part and no further. A JPEG that is stored from top to bottom (not progressive) is
                  cut by writing a smaller height into its header; libjpeg passes over the rest

At full scale these are the pixels that the whole picture has there, bit for bit. Only a file that ends as a JPEG does
is cut: one that was cut off is decoded whole, and refused for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import simplejpeg
import torch
from torch import Tensor

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels of the upright picture."""

_UPRIGHT: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (1, 2)),
    8: (True, (2,)),
}
"""EXIF orientation -> how stored pixels (C, H, W) become upright: are the sides swapped, after which are flipped."""
_SCALES = (8, 4, 2, 1)
_BLOCK = 16  # rows that a JPEG's blocks span together, as a rule; fewer are no cheaper
_START, _END = b"\xff\xd8", b"\xff\xd9"
_QUANTISATION, _HUFFMAN, _RESTART, _COMMENT, _JFIF, _SCAN = 0xDB, 0xC4, 0xDD, 0xFE, 0xE0, 0xDA
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2


class Frame(NamedTuple):
    """What a JPEG says of its pixels."""

    height: int
    """As stored."""
    width: int
    place: int
    """Of the height among the bytes."""
    sequential: bool
    """Whether it is stored from top to bottom."""
    plain: bool
    """Whether nothing else is said: no EXIF, which may turn the picture, and none of Adobe's colours."""


class Picture(Protocol):
    """Pixels to come: uint8, (C, height, width)."""

    height: int
    width: int

    def whole(self) -> Tensor:
        """All pixels, uint8 (C, height, width). Raises ImageError where they cannot be read."""
        ...

    def region(self, box: Box, least: int) -> Tensor:
        """The pixels of a box, uint8 (C, h, w): all, or fewer at a smaller scale while both sides keep `least`.

        Raises ImageError where they cannot be read.
        """
        ...


class Pixels:
    """A picture that is decoded already: uint8 (C, H, W)."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.height, self.width = image.shape[-2:]

    def whole(self) -> Tensor:
        """The image as it is."""
        return self.image

    def region(self, box: Box, least: int) -> Tensor:  # noqa: ARG002  (nothing is saved by a smaller scale)
        """A copy of the box without gaps in memory, colours side by side: torch resizes anything else more slowly."""
        top, left, height, width = box
        part = self.image[:, top : top + height, left : left + width]
        return part.permute(1, 2, 0).contiguous().permute(2, 0, 1)


class Jpeg:
    """A JPEG, RGB or grey, that EXIF `orientation` sets upright.

    `instead` decodes all of it in another way, or raises ImageError; it has the last word on whatever is unusual.
    """

    def __init__(self, data: bytes, frame: Frame, orientation: int, instead: Callable[[], Tensor]) -> None:
        self.data, self.frame, self.orientation, self.instead = data, frame, orientation, instead
        swapped = _UPRIGHT.get(orientation, (False, ()))[0]
        self.height, self.width = (frame.width, frame.height) if swapped else frame[:2]
        self.scale, self.rows = 0, 0  # what was decoded last: every row above `rows`, at 1/scale
        self.pixels = np.empty((0, 0, 3), np.uint8)

    def whole(self) -> Tensor:
        """All pixels, upright, uint8 (3, height, width); the three colours of a pixel lie side by side in memory."""
        if self._decode(1, self.frame.height):
            return upright(torch.from_numpy(self.pixels).permute(2, 0, 1), self.orientation)
        return self.instead()

    def region(self, box: Box, least: int) -> Tensor:
        """The pixels of a box, decoded at the smallest scale that leaves both sides `least` of them."""
        top, left, height, width = self._as_stored(box)
        scale = next(scale for scale in _SCALES if min(height, width) >= least * scale or scale == 1)
        if not self._decode(scale, top + height):
            return Pixels(self.instead()).region(box, least)
        rows, columns = _scaled(top, height, scale), _scaled(left, width, scale)
        part = np.ascontiguousarray(self.pixels[rows, columns])
        return upright(torch.from_numpy(part).permute(2, 0, 1), self.orientation)

    def _as_stored(self, box: Box) -> Box:
        swapped, flipped = _UPRIGHT.get(self.orientation, (False, ()))
        top, left, height, width = (box[1], box[0], box[3], box[2]) if swapped else box
        top = self.frame.height - top - height if 1 in flipped else top
        left = self.frame.width - left - width if 2 in flipped else left
        return top, left, height, width

    def _decode(self, scale: int, bottom: int) -> bool:
        """Have the rows above `bottom` at 1/scale in `self.pixels`, (h, w, 3); False where libjpeg has an objection."""
        if self.scale == scale and self.rows >= bottom:
            return True
        beyond = 2 * scale  # the row below is looked at to upsample colours
        data, (rows, width) = self.data, self.frame[:2]
        cut = -(-(bottom + beyond) // _BLOCK) * _BLOCK
        # asked again, for another copy of the image, the picture is decoded to its end
        whole = cut >= rows or self.scale > 0 or not self.frame.sequential or not data.endswith(_END)
        if not whole:
            data, rows = cut_to(data, self.frame, cut), cut
        least = -(-rows // scale), -(-width // scale)
        try:
            if simplejpeg.decode_jpeg_header(data)[:2] != (rows, width):
                return False
            pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=least[0], min_width=least[1], min_factor=scale, strict=whole
            )
        except Exception:  # an error, or a warning: nothing that is settled here
            return False
        if pixels.shape[:2] != least:
            return False
        self.pixels, self.scale, self.rows = pixels, scale, rows if whole else rows - beyond
        return True


def upright(image: Tensor, orientation: int) -> Tensor:
    """Stored pixels (C, H, W) as EXIF `orientation` says that they are seen; other values change nothing."""
    swapped, flipped = _UPRIGHT.get(orientation, (False, ()))
    image = image.flip(flipped) if flipped else image
    return image.transpose(1, 2) if swapped else image


def is_turned(orientation: int) -> bool:
    """Whether an EXIF orientation is one that changes the picture."""
    return orientation in _UPRIGHT


def read_frame(data: bytes) -> Frame | None:
    """The frame of an 8-bit grey or three-coloured JPEG; None for anything else, and where the header is damaged."""
    at, found, plain = 2, None, data.startswith(_START)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == _SCAN:
            return found._replace(plain=plain) if found is not None else None
        if marker in _SEQUENTIAL or marker == _PROGRESSIVE:
            found = _frame(body, at + 5, marker in _SEQUENTIAL)
            if found is None:
                return None
        elif marker == _QUANTISATION:
            plain = plain and length % 65 == 2  # tables of 8 bits
        elif marker == _JFIF:
            plain = plain and body.startswith(b"JFIF") and length >= 16
        else:
            plain = plain and marker in (_HUFFMAN, _RESTART, _COMMENT)
        at += 2 + length
    return None


def _frame(body: bytes, place: int, sequential: bool) -> Frame | None:
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return None
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return Frame(height, width, place, sequential, False) if height and width else None


def cut_to(data: bytes, frame: Frame, rows: int) -> bytes:
    """A JPEG whose header says `rows` for its height."""
    return data[: frame.place] + rows.to_bytes(2, "big") + data[frame.place + 2 :]


def _scaled(first: int, count: int, scale: int) -> slice:
    """Pixels first to first + count at 1/scale, the borders at the nearest pixel."""
    half = scale // 2
    return slice((first + half) // scale, (first + count + half) // scale)
