"""Sets that torchvision knows by name: used where they lie under VITRAIL_HOME/datasets, else downloaded there.

torchvision fetches and unpacks; the pictures of file-based sets are then read by our own reader, so that they pass
the same checks as any folder. Array-based sets (CIFAR, MNIST, SVHN, STL-10) are used as arrays.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.arrays import ArraySplit
from vitrail.data.folders import FileSplit
from vitrail.data.sources import Source, Split
from vitrail.errors import UserError


@dataclass(frozen=True)
class Named:
    """How one class of torchvision.datasets is asked for its splits, and where it keeps pictures and labels."""

    cls: str
    splits: dict[str, dict[str, Any]]
    labels: str = "targets"
    files: str = ""
    """Attribute that lists the files; or "" where `data` is the array of images."""


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {name: {"split": name} for name in ("train", "val", "test")}
_PETS = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_320 = {name: {"split": name, "size": "320px"} for name in ("train", "val")}

NAMED = {
    "cifar10": Named("CIFAR10", _BY_FLAG),
    "cifar100": Named("CIFAR100", _BY_FLAG),
    "mnist": Named("MNIST", _BY_FLAG),
    "fashionmnist": Named("FashionMNIST", _BY_FLAG),
    "kmnist": Named("KMNIST", _BY_FLAG),
    "svhn": Named("SVHN", _BY_NAME, "labels"),
    "stl10": Named("STL10", _BY_NAME, "labels"),
    "flowers102": Named("Flowers102", _THREE, "_labels", "_image_files"),
    "oxfordiiitpet": Named("OxfordIIITPet", _PETS, "_labels", "_images"),
    "food101": Named("Food101", _BY_NAME, "_labels", "_image_files"),
    "dtd": Named("DTD", _THREE, "_labels", "_image_files"),
    "fgvcaircraft": Named("FGVCAircraft", _THREE, "_labels", "_image_files"),
    "gtsrb": Named("GTSRB", _BY_NAME, "_samples", "_samples"),
    "eurosat": Named("EuroSAT", {"train": {}}, "samples", "samples"),
    "imagenette": Named("Imagenette", _320, "_samples", "_samples"),
}
"""Names that `open_source` takes, in lower case."""


def datasets_folder() -> Path:
    """Where named sets are kept: VITRAIL_HOME/datasets, VITRAIL_HOME being ~/.cache/vitrail unless set."""
    return Path(os.environ.get("VITRAIL_HOME") or "~/.cache/vitrail").expanduser() / "datasets"


def open_named(name: str) -> Source:
    """The set `name` of NAMED. Raises UserError if it is neither present nor can be downloaded."""
    entry, root = NAMED[name], datasets_folder()
    parts = {split: _fetch(name, entry, options, root) for split, options in entry.splits.items()}
    splits: dict[str, Split] = {split: _as_split(entry, part, root, split) for split, part in parts.items()}
    classes = _class_names(parts["train"], splits["train"])
    first = splits["train"]
    return Source(name, classes, splits, first.images.shape[3] if isinstance(first, ArraySplit) else 3)


def _fetch(name: str, entry: Named, options: dict[str, Any], root: Path) -> Any:
    from torchvision import datasets

    cls = getattr(datasets, entry.cls)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # torchvision prints what it does
        warnings.simplefilter("ignore")  # of unpickling arrays that an old numpy wrote
        try:
            return cls(root, download=False, **options)
        except (RuntimeError, FileNotFoundError, ValueError):
            pass  # torchvision's ways to say that the set is not there
        try:
            root.mkdir(parents=True, exist_ok=True)
            return cls(root, download=True, **options)
        except Exception as error:  # network, disc, archive or checksum: whatever it is, the set is not there
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} is not in {root} and could not be downloaded there ({reason})") from error


def _as_split(entry: Named, part: Any, root: Path, split: str) -> Split:
    labels = getattr(part, entry.labels)
    if entry.files:
        files = getattr(part, entry.files)
        if entry.files == entry.labels:  # pairs (file, label)
            files, labels = [file for file, _ in files], [label for _, label in files]
        return FileSplit(root, (Path(os.path.relpath(file, root)).as_posix() for file in files), np.asarray(labels))
    images = np.asarray(part.data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[1] == 3:  # SVHN and STL-10 keep channels first
        images = images.transpose(0, 2, 3, 1)
    return ArraySplit(images, np.asarray(labels), split)


def _class_names(part: Any, train: Split) -> list[str]:
    names = getattr(part, "classes", None)
    if names is None:
        names = range(int(np.max(train.labels)) + 1)
    return [name[0] if isinstance(name, tuple) else str(name) for name in names]
