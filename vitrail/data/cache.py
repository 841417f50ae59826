"""Decoded pictures of a split, kept in memory from one epoch to the next, for all processes that load it.

Decoding is half of what a photograph of 500 x 375 costs, and copying its pixels a tenth of that. So `kept` puts a
memory of pixels before a split that will be read again and again, where all of it takes no more than a quarter of the
memory that is free. Pictures that training would decode at a smaller scale stay encoded: so nothing changes by a bit.

The memory is shared by being inherited: where processes are not forked there is none.
"""

from __future__ import annotations

import mmap
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data.pictures import Picture, Pixels
from vitrail.data.read import ImageError
from vitrail.data.sources import Split

_SHARE = 0.25
_LOOKED_AT = 32  # pictures, from which the size of all is taken
_SPARE = 1.2


def kept(split: Split, img_size: int, processes: int = 1) -> Split:
    """The same images, remembered once decoded; or the split itself where that takes too much memory or helps little.

    `img_size` is the side at which they are seen, `processes` how many share this machine's memory, each with its own.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    room = _room(split, 2 * img_size) if method == "fork" and len(split) else 0
    return Kept(split, 2 * img_size, room) if 0 < room * processes <= _SHARE * free_memory() else split


class Kept(Split):
    """`whole`, with the pixels of pictures whose shorter side is below `below` kept in `room` bytes."""

    def __init__(self, whole: Split, below: int, room: int) -> None:
        self.whole, self.labels, self.below = whole, whole.labels, below
        self.memory = np.frombuffer(mmap.mmap(-1, room), np.uint8)  # takes no memory before it is written to
        shared = mmap.mmap(-1, 8 * (1 + 3 * len(whole)))
        self.used = np.frombuffer(shared, np.int64, 1)
        self.places = np.frombuffer(shared, np.int64, offset=8).reshape(-1, 3)  # where from, height, width
        self.lock = multiprocessing.Lock()

    def open(self, i: int) -> Picture:
        with self.lock:
            start, height, width = self.places[i].tolist()
        if not height:
            picture = self.whole.open(i)
            return self._keep(i, picture) if min(picture.height, picture.width) < self.below else picture
        pixels = self.memory[start : start + 3 * height * width].reshape(height, width, 3)
        return Pixels(torch.from_numpy(pixels).permute(2, 0, 1))

    def _keep(self, i: int, picture: Picture) -> Picture:
        image = picture.whole()
        pixels = image.permute(1, 2, 0).numpy()
        with self.lock:
            start = int(self.used[0])
            fits = pixels.shape[2] == 3 and start + pixels.size <= len(self.memory)
            self.used[0] += pixels.size if fits else 0
        if fits:
            self.memory[start : start + pixels.size].reshape(pixels.shape)[:] = pixels
            with self.lock:
                self.places[i] = start, *pixels.shape[:2]
        return Pixels(image)

    def read(self, i: int) -> Tensor:
        return self.whole.read(i)

    def name(self, i: int) -> str:
        return self.whole.name(i)

    def encoded(self, i: int) -> bytes | None:
        return self.whole.encoded(i)


def free_memory() -> int:
    """Bytes that processes of this container may still take; 0 where the system does not say."""
    return max(min(_available(), _allowed()), 0)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


def _allowed() -> int:
    """What the container's limit leaves, without what its files take in the page cache."""
    group = Path("/sys/fs/cgroup")
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((group / most).read_text()) - int((group / used).read_text())
        except (OSError, ValueError):
            continue  # another version, or "max": no limit
    return 2**63 - 1


def _room(split: Split, below: int) -> int:
    """Bytes that the pixels of the pictures to be kept take, about; 0 where there are none or they are arrays."""
    sizes = []
    for i in range(0, len(split), max(len(split) // _LOOKED_AT, 1)):
        try:
            if split.encoded(i) is None:
                return 0
            picture = split.open(i)
            small = min(picture.height, picture.width) < below
            sizes.append(3 * picture.height * picture.width if small else 0)
        except (ImageError, OSError):
            continue
    return int(_SPARE * len(split) * sum(sizes) / len(sizes)) if sizes else 0
