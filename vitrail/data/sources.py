"""Where images come from, by one string: `open_source("digits")`, a folder, cifar10, hf:NAME, arrays, shards, a table.

A source is opened in two steps. `find_source` lists what is there and writes down what is wrong; `open_source` refuses
what cannot be trained on and holds images out where the source has no split of its own, stratified and seeded.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.compact import Labels, Numbers, as_labels, class_numbers, groups_of, part_of
from vitrail.data.pictures import Picture, Pixels
from vitrail.data.read import decode_image, open_picture
from vitrail.errors import UserError, did_you_mean

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""How people call their splits, and what they are called here."""


class Split(ABC):
    """Images in a fixed order. `labels` is an array of class numbers, or lists of them where an image has several."""

    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Image i as uint8 (C, H, W). Raises ImageError if it cannot be read."""

    def open(self, i: int) -> Picture:
        """Image i with its size, to be decoded where and as far as pixels are asked for. Raises ImageError."""
        return Pixels(self.read(i))

    @abstractmethod
    def name(self, i: int) -> str:
        """What image i is called in messages and reports: for files the path relative to the source."""

    def encoded(self, i: int) -> bytes | None:  # noqa: ARG002  (arrays have none)
        """The file of image i as it is stored, or None where images are stored as arrays. Raises ImageError."""
        return None


class EncodedSplit(Split):
    """A split whose images are encoded files, wherever they lie."""

    @abstractmethod
    def encoded(self, i: int) -> bytes: ...

    def read(self, i: int) -> Tensor:
        return decode_image(self.encoded(i), self.name(i))

    def open(self, i: int) -> Picture:
        return open_picture(self.encoded(i), self.name(i))


class Part(Split):
    """Some images of another split, in the order of `indices`."""

    def __init__(self, whole: Split, indices: Sequence[int] | Numbers) -> None:
        self.whole, self.indices = whole, np.asarray(indices, dtype=np.int64)
        self.labels = part_of(whole.labels, self.indices)

    def read(self, i: int) -> Tensor:
        return self.whole.read(int(self.indices[i]))

    def open(self, i: int) -> Picture:
        return self.whole.open(int(self.indices[i]))

    def name(self, i: int) -> str:
        return self.whole.name(int(self.indices[i]))

    def encoded(self, i: int) -> bytes | None:
        return self.whole.encoded(int(self.indices[i]))


@dataclass
class Source:
    """Images with labels: `splits` has "train" and at least one of "val" and "test" once `open_source` returns it."""

    name: str
    classes: list[str]
    splits: dict[str, Split]
    in_chans: int = 3
    multi_label: bool = False
    notes: list[str] = field(default_factory=list)
    """What was skipped or decided, a sentence each."""
    problems: list[str] = field(default_factory=list)
    """Why this cannot be trained on as it is, a sentence each; `open_source` raises the first."""


def open_source(text: str | Path, *, seed: int = 0, val_fraction: float = 0.2) -> Source:
    """Opens the source that `text` names, with a training split and at least one to score on.

    `text` is `digits`; a folder of class folders, with or without train/, val/, test/ above them; a set of torchvision
    by name (`cifar10`); `hf:NAME[:CONFIG]` or `hf:FOLDER`; `arrays.npz`; tar shards (`shards/{000..127}.tar`, a glob,
    one .tar); a table `labels.csv`. Images are held out (`val_fraction` of each class, the same for the same `seed`)
    only where the source has no val or test of its own. Raises UserError, in one sentence, for what is missing or
    cannot be trained on.
    """
    source = find_source(text)
    problems = [*source.problems, *label_problems(source)]
    if problems:
        raise UserError(problems[0])
    return hold_out(source, seed=seed, val_fraction=val_fraction)


def found_anywhere(text: str) -> str:
    """The same source, named so that it is found from any folder: paths become absolute, names stay."""
    from vitrail.data.named import NAMED

    path = Path(text).expanduser()
    there = path.exists() or (path.suffix == ".tar" and path.parent.is_dir())  # a pattern of shards exists nowhere
    return text if text.lower() in ("digits", *NAMED) or not there else str(path.absolute())


def find_source(text: str | Path) -> Source:
    """Lists what `text` names, split only where it is split already; `problems` says what is wrong with the labels."""
    text = os.fspath(text)
    path = Path(text).expanduser()
    opener = _opener(text, path)
    if opener is not None:
        return opener()
    if path.is_file():
        raise UserError(f"{text} is a file of a kind that is no source; give a folder, .npz, .csv or .tar")
    raise UserError(_unknown(text, path))


def _opener(text: str, path: Path) -> Callable[[], Source] | None:
    # Imported here: each kind of source brings its own library, and most runs need one kind.
    from vitrail.data import arrays, folders, hub, named, shards, tables

    if text.startswith("hf:"):
        return lambda: hub.open_hub(text)
    if text == "digits":
        return arrays.open_digits
    if text.lower() in named.NAMED:
        return lambda: named.open_named(text.lower())
    if path.is_dir():
        return lambda: folders.open_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return lambda: arrays.open_arrays(path)
    if path.suffix in (".csv", ".tsv") and path.is_file():
        return lambda: tables.open_table(path)
    if shards.names_shards(text):
        return lambda: shards.open_shards(text)
    return None


def hold_out(source: Source, *, seed: int, val_fraction: float) -> Source:
    """Where there is only "train", moves `val_fraction` of it to "val". Raises UserError if nothing can be moved."""
    train = source.splits["train"]
    if "val" in source.splits or "test" in source.splits:
        return source
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1 (0.2 holds out a fifth)")
    held = _held_out(as_labels(train.labels), seed, val_fraction)
    if not held.any():
        raise UserError(
            f"{source.name} has one image of each class, so none can be held out to score on; "
            "add images, or a val/ or test/ split of its own"
        )
    source.splits = {"train": Part(train, np.flatnonzero(~held)), "val": Part(train, np.flatnonzero(held))}
    source.notes.append(f"no val or test split: held out {held.sum()} of {len(train)} images (seed {seed})")
    return source


def _held_out(labels: Labels, seed: int, fraction: float) -> NDArray[np.bool_]:
    """(N,) whether each image is held out. Every class keeps at least one image and, if it has two, lends one."""
    several = np.zeros(len(labels), np.int64)  # several labels: one random split
    held = np.zeros(len(labels), bool)
    for key, members in groups_of(labels if isinstance(labels, np.ndarray) else several):
        share = min(max(round(len(members) * fraction), 1), len(members) - 1)
        order = np.random.default_rng([seed % 2**64, key]).permutation(len(members))
        held[members[order[:share]]] = True
    return held


def label_problems(source: Source) -> list[str]:
    """What any kind of source can get wrong: no training images, one class, a class to score that train lacks."""
    train = source.splits.get("train")
    if train is None or not len(train):
        return [f"{source.name} has no training images"]
    counts = class_counts(source, train)
    present = [name for name, count in counts.items() if count]
    problems = []
    if not source.multi_label and len(present) < 2:
        only = f" ('{present[0]}')" if present else ""
        problems.append(f"{source.name} has one class only{only}; at least two are needed to tell apart")
    for name, split in source.splits.items():
        unknown = [c for c, count in class_counts(source, split).items() if count and not counts[c]]
        if unknown:
            problems.append(
                f"{source.name}: {name} has class {_quoted(unknown)}, which train lacks; "
                "add training images of it or remove it"
            )
    return problems


def class_counts(source: Source, split: Split) -> dict[str, int]:
    """Images of each class in a split, in the order of the classes."""
    counts = np.bincount(class_numbers(as_labels(split.labels)), minlength=len(source.classes)).tolist()
    return dict(zip(source.classes, counts, strict=False))


def classes_of(words: Iterable[str]) -> list[str]:
    """The words once each, in alphabetical order (numbers in numerical order): the class numbers are their places."""
    names = set(words)
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int) if numeric else sorted(names)


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _unknown(text: str, path: Path) -> str:
    from vitrail.data.named import NAMED

    siblings = [name for name in os.listdir(path.parent) if name[0] != "."] if path.parent.is_dir() else []
    if len(path.parts) > 1 or path.suffix or text.startswith(("~", ".")):
        if not path.parent.is_dir():
            return f"there is no {text}: the folder {path.parent} does not exist"
        return f"there is no file or folder {text}{did_you_mean(path.name, siblings)}"
    known = ["digits", *NAMED, *siblings]
    return (
        f"'{text}' is no data source: no folder or file has that name, nor a known set "
        f"({', '.join(['digits', *NAMED])}){did_you_mean(text.lower(), known)}"
    )
