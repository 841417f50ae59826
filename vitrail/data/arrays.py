"""Arrays in memory or in a .npz file: images (N, H, W) or (N, H, W, C) uint8, labels (N,) or (N, K) of 0 and 1."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data.compact import Labels, as_labels
from vitrail.data.sources import Source, Split
from vitrail.errors import UserError, did_you_mean

_KEYS = {  # of a .npz: ours and Keras's, then MedMNIST's
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


class ArraySplit(Split):
    """Images as one uint8 array (N, H, W, C), which may be mapped from a file instead of held in memory."""

    def __init__(self, images: np.ndarray, labels: Sequence[int] | Labels, name: str) -> None:
        self.images, self.labels, self.prefix = images, as_labels(labels), name

    def read(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[i])).permute(2, 0, 1)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        if isinstance(self.images, np.memmap):  # a worker maps the file again; pickling would copy all of it
            mapped = self.images.filename, self.images.dtype, self.images.offset, self.images.shape
            state["images"] = mapped
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if isinstance(self.images, tuple):
            file, dtype, offset, shape = self.images
            self.images = np.memmap(file, dtype, "r", offset, shape)


def open_digits() -> Source:
    """scikit-learn's 1,797 grey 8 x 8 digits, always the same stratified 80/20 split: 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    parts = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    splits: dict[str, Split] = {
        name: ArraySplit(images[chosen], digits.target[chosen], name)
        for name, chosen in zip(("train", "test"), map(np.sort, parts), strict=True)
    }
    return Source("digits", [str(k) for k in range(10)], splits, in_chans=1)


def open_arrays(path: Path) -> Source:
    """A .npz with x_train, y_train[, x_val, y_val][, x_test, y_test][, class_names], or MedMNIST's names of these.

    Uncompressed members (`np.savez`) are mapped, not loaded. Never unpickles. Raises UserError for other arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
            if not isinstance(members, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            return _from_members(path, members)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from error


def _from_members(path: Path, members: np.lib.npyio.NpzFile) -> Source:
    images, labels = {}, {}
    for split, names in _KEYS.items():
        for x, y in names:
            if x in members and y in members:
                images[split] = _checked_images(path, x, _mapped(path, x, members))
                labels[split] = _checked_labels(path, y, members[y], len(images[split]))
    if "train" not in images:
        near = next((did_you_mean(name, ["x_train", "y_train"]) for name in members.files if "train" in name), "")
        raise UserError(f"{path} needs the arrays x_train and y_train; it has {', '.join(members.files)}{near}")
    chans = {split: array.shape[3] for split, array in images.items()}
    widths = {array.ndim for array in labels.values()}
    if len(set(chans.values())) > 1 or len(widths) > 1:
        raise UserError(f"{path}: the splits differ in channels or in the shape of their labels")
    multi = widths == {2}
    found = [array.shape[1] if multi else int(array.max()) + 1 if len(array) else 0 for array in labels.values()]
    classes = [str(k) for k in range(max(found))]
    if "class_names" in members:
        classes = [str(name) for name in members["class_names"].tolist()]
        if len(classes) < max(found):
            raise UserError(f"{path}: class_names has {len(classes)} names, but labels go up to {max(found) - 1}")
    splits: dict[str, Split] = {s: ArraySplit(images[s], _as_lists(labels[s]), s) for s in images}
    return Source(path.stem, classes, splits, chans["train"], multi)


def _mapped(path: Path, name: str, members: np.lib.npyio.NpzFile) -> np.ndarray:
    """The member, mapped from the file if it is stored uncompressed."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return members[name]
        with archive.open(info) as member:  # checks the local header
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            skip = member.tell()
        if fortran or dtype.hasobject or 0 in shape:
            return members[name]
        file.seek(info.header_offset + 26)  # a zip's local header: 30 bytes, then name and extra field
        start = info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
    return np.memmap(path, dtype, "r", start + skip, shape)


def _checked_images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise UserError(f"{path}: {name} is {array.dtype}; images must be uint8, 0 to 255")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] > 16:
        raise UserError(f"{path}: {name} has shape {array.shape}; it must be (N, H, W) or (N, H, W, C)")
    return array


def _checked_labels(path: Path, name: str, array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if len(array) != count:
        raise UserError(f"{path}: {name} has {len(array)} labels for {count} images")
    if array.dtype.kind not in "iub" or array.ndim not in (1, 2):
        raise UserError(f"{path}: {name} is {array.dtype} of shape {array.shape}; labels must be whole numbers (N,)")
    if array.ndim == 2 and not np.isin(array, (0, 1)).all():
        raise UserError(f"{path}: {name} has shape {array.shape}, so it must be 0 or 1 for each image and class")
    if array.ndim == 1 and count and array.min() < 0:
        raise UserError(f"{path}: {name} has the label {array.min()}; labels count from 0")
    return array


def _as_lists(labels: np.ndarray) -> Labels:
    return [np.flatnonzero(row).tolist() for row in labels] if labels.ndim == 2 else as_labels(labels)
