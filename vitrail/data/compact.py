"""Names and labels of millions of images, each kind in one block of memory.

A list of ten million str and one of int are as many objects: slow to copy and to count, several times the size, and in
every loader process anew, since to read an object is to write its reference count.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = Numbers | list[list[int]]
"""Of N images: (N,) class numbers, or a list of them an image where each has several labels."""


class Names:
    """File names, or other str, in the order in which they were added; byte for byte what the system calls them."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q")
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """One more, at the end."""
        self._bytes += os.fsencode(name)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(bytes(self._bytes[start : self._ends[i]]))

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def as_labels(labels: Sequence[int] | Sequence[list[int]] | NDArray[np.integer]) -> Labels:
    """Class numbers as an array; lists of them, where an image has several, as they are."""
    if isinstance(labels, list) and labels and isinstance(labels[0], list):
        return labels
    return np.asarray(labels, dtype=np.int64)


def part_of(labels: Labels, indices: Numbers) -> Labels:
    """The labels of some images, in the order of `indices`."""
    return labels[indices] if isinstance(labels, np.ndarray) else [labels[i] for i in indices]


def class_numbers(labels: Labels) -> Numbers:
    """All class numbers that are said, one image's after the other's."""
    return labels if isinstance(labels, np.ndarray) else np.fromiter(chain.from_iterable(labels), np.int64)


def groups_of(kinds: Numbers) -> Iterator[tuple[int, Numbers]]:
    """(kind, indices of those that are of it, rising), kind by kind."""
    by_kind = np.argsort(kinds, kind="stable")
    found, starts = np.unique(kinds[by_kind], return_index=True)
    return zip(found.tolist(), np.split(by_kind, starts[1:]), strict=False)  # of none np.split makes one empty group
