"""WebDataset tar shards: `shards/{000..127}.tar`, a glob `shards/*.tar`, or one .tar.

The members are indexed once, by offset and size, when the source is opened; after that every image is reached with
one seek and one read. Random access instead of streaming is what makes the sample order a pure function of the seed,
shuffling exact and resuming free; it asks for uncompressed shards on a disc that seeks. Of many processes each indexes
all shards, headers and labels alone, and then reads the bytes of the images that it is dealt and of no others; no
shard belongs to a process, so any number of processes goes with any number of shards.

Members that share a path up to the first dot of the file name are one sample: an image, and its label as `.cls` (a
whole number) or in `.json` under "label" (a number or a name; "name" gives the name of a number; or a list of numbers
or of names, where an image has several labels). Shards whose file names begin with a split's word (train-000.tar,
val-000.tar) make that split.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.compact import Labels, Names
from vitrail.data.folders import EXTENSIONS
from vitrail.data.read import ImageError
from vitrail.data.sources import SPLIT_WORDS, EncodedSplit, Source, classes_of
from vitrail.errors import UserError, did_you_mean

Label = int | str | tuple[int | str, ...]
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class Index:
    """Where the images of some shards lie: compact columns, since there may be millions."""

    shards: list[Path]
    keys: Names = field(default_factory=Names)
    shard: array[int] = field(default_factory=lambda: array("l"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("l"))
    """The number of each image's label in `labels`."""
    labels: dict[Label, int] = field(default_factory=dict)
    """Every label that is said, numbered as it was first met."""
    names: dict[int, str] = field(default_factory=dict)
    """Class names of numbers, where the shards say them."""


class ShardSplit(EncodedSplit):
    """Images inside tar files, by offset and size."""

    def __init__(self, index: Index, labels: Labels) -> None:
        self.index, self.labels = index, labels

    def encoded(self, i: int) -> bytes:
        index = self.index
        try:
            with open(index.shards[index.shard[i]], "rb") as file:  # opened anew: workers share no file position
                file.seek(index.offset[i])
                data = file.read(index.size[i])
        except OSError as error:
            raise ImageError(self.name(i), f"its shard cannot be read ({error.strerror or error})") from error
        if len(data) < index.size[i]:
            raise ImageError(self.name(i), "its shard is truncated")
        return data

    def name(self, i: int) -> str:
        return f"{self.index.shards[self.index.shard[i]].name}/{self.index.keys[i]}"


def names_shards(text: str) -> bool:
    """Whether `text` is a path or pattern of tar files."""
    return text.endswith(".tar") and (Path(text).is_file() or any(mark in text for mark in "{*?["))


def open_shards(text: str) -> Source:
    """Indexes the shards that `text` names. Raises UserError for missing or compressed shards and missing labels."""
    groups: dict[str, list[Path]] = {}
    for path in _expand(text):
        word = re.split(r"[-_.\d]", path.name.lower(), maxsplit=1)[0]
        groups.setdefault(SPLIT_WORDS.get(word, ""), []).append(path)
    if "" in groups and len(groups) > 1:
        raise UserError(f"{text}: {groups[''][0].name} names no split while other shards do; use train-, val- or test-")
    indexes = {split or "train": _index(paths) for split, paths in groups.items()}
    listed = _listed_classes(next(iter(groups.values()))[0].parent)
    several = _several(text, indexes)
    classes, numbers, notes = _classes(text, indexes, listed)
    splits = {split: ShardSplit(index, _numbered(index, numbers)) for split, index in indexes.items()}
    return Source(Path(text).name, classes, dict(splits), multi_label=several, notes=notes)


def _several(text: str, indexes: dict[str, Index]) -> bool:
    """Whether an image has several labels: all have a list of them, or none has."""
    kinds = {isinstance(label, tuple) for index in indexes.values() for label in index.labels}
    if len(kinds) > 1:
        raise UserError(f"{text}: some samples have a list of labels and others one; write [3] where 3 is all there is")
    return kinds == {True}


def _numbered(index: Index, numbers: dict[int | str, int]) -> Labels:
    if any(isinstance(label, tuple) for label in index.labels):  # then all are, as _several has seen
        sets = [[numbers[each] for each in label] for label in index.labels if isinstance(label, tuple)]
        return [sets[k] for k in index.label]
    places = [numbers[label] for label in index.labels if not isinstance(label, tuple)]
    return np.array(places, np.int64)[np.array(index.label, np.int64)]


def _expand(text: str) -> list[Path]:
    """The files of a brace pattern (all must exist), a glob, or one path; sorted."""
    parts = _RANGE.split(str(Path(text).expanduser()))
    choices: list[list[str]] = [[parts[0]]]
    for first, last, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        choices += [[f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)], [rest]]
    names = ["".join(choice) for choice in itertools.product(*choices)]
    if len(names) == 1 and not Path(names[0]).is_file():
        paths = [Path(name) for name in sorted(glob.glob(names[0]))]
        if not paths:
            raise UserError(f"no shard matches {text}; write a range as {{000..127}}, or a glob as *.tar")
        return paths
    missing = [name for name in names if not Path(name).is_file()]
    if missing or not names:
        raise UserError(
            f"{text}: {len(missing)} of {len(names)} shards are missing, the first is {(missing or ['?'])[0]}"
        )
    return [Path(name) for name in names]


def _index(shards: list[Path]) -> Index:
    index = Index(shards)
    for number, path in enumerate(shards):
        try:
            with tarfile.open(path, "r:") as tar:
                _index_shard(index, number, path, tar)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path} is no plain tar file ({error}); shards must be uncompressed and whole") from error
    return index


def _index_shard(index: Index, number: int, path: Path, tar: tarfile.TarFile) -> None:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        folder, _, file = member.name.rpartition("/")
        if not member.isreg() or file.startswith("."):
            continue
        stem, _, extension = file.partition(".")
        key, extension = (f"{folder}/{stem}" if folder else stem), f".{extension.lower()}"
        last = extension[extension.rindex(".") :]
        if last in EXTENSIONS and (key not in images or extension == last):  # cat.jpg before cat.mask.png
            images[key] = member
        elif last == ".cls" or (last == ".json" and key not in labels):
            labels[key] = member
    for key, member in images.items():
        label = _label(index, tar, f"{path}: sample '{key}'", labels.get(key))
        index.label.append(index.labels.setdefault(label, len(index.labels)))
        index.keys.add(key + Path(member.name).suffix)
        index.shard.append(number)
        index.offset.append(member.offset_data)
        index.size.append(member.size)


def _label(index: Index, tar: tarfile.TarFile, where: str, member: tarfile.TarInfo | None) -> Label:
    file = tar.extractfile(member) if member else None
    if member is None or file is None:
        raise UserError(f"{where} has no label; a sample needs a .cls, or a .json with the key 'label'")
    try:
        content: Any = json.loads(file.read())  # the text of a .cls is JSON too
    except ValueError as error:
        raise UserError(f"{where}: {member.name} cannot be read ({error})") from error
    label: Any = content.get("label") if isinstance(content, dict) else content
    if not all(_is_class(each) for each in (label if isinstance(label, list) else [label])):
        near = did_you_mean("label", content) if isinstance(content, dict) else ""
        raise UserError(f"{where} has no label in {member.name} (key 'label', a class number or name){near}")
    if isinstance(label, int) and isinstance(content, dict) and isinstance(content.get("name"), str):
        index.names.setdefault(label, content["name"])
    return tuple(label) if isinstance(label, list) else label


def _is_class(label: Any) -> bool:
    """Whether this is a class's name or its number."""
    if isinstance(label, str):
        return label != ""
    return isinstance(label, int) and not isinstance(label, bool) and label >= 0


def _listed_classes(folder: Path) -> list[str]:
    """Class names from classes.json (a list) or classes.txt (a line each) beside the shards."""
    path = folder / "classes.json"
    if path.is_file():
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(names, list):
            raise UserError(f"{path} must be a list of class names")
        return [str(name) for name in names]
    path = folder / "classes.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _classes(
    text: str, indexes: dict[str, Index], listed: list[str]
) -> tuple[list[str], dict[int | str, int], list[str]]:
    """(class names, number of each label, notes). Numbers with gaps and no list of names are numbered anew."""
    said_labels = (label for index in indexes.values() for label in index.labels)
    labels = {each for label in said_labels for each in (label if isinstance(label, tuple) else [label])}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if len(numbers) < len(labels):
        if numbers:
            raise UserError(f"{text}: labels are numbers in some samples and names in others")
        classes = classes_of(str(label) for label in labels)
        return classes, {name: k for k, name in enumerate(classes)}, []
    if listed:
        if numbers and numbers[-1] >= len(listed):
            raise UserError(f"{text}: the label {numbers[-1]} has no name; the list of classes has {len(listed)}")
        return listed, {k: k for k in range(len(listed))}, []
    said = {label: name for index in indexes.values() for label, name in index.names.items()}
    classes = [said.get(label, str(label)) for label in numbers]
    gaps = bool(numbers) and numbers[-1] != len(numbers) - 1
    notes = [f"labels up to {numbers[-1]} of which {len(numbers)} occur are numbered anew"] if gaps else []
    return classes, {label: k for k, label in enumerate(numbers)}, notes
