"""A folder of class folders: root/CLASS/picture.jpg, or root/train/CLASS/..., with val/ and test/ beside train/.

What is a picture is decided by its extension, or by its first bytes where it has none; whether it is whole is found
when it is read. Links to folders elsewhere are followed; links back into the tree, dangling links, pipes and files
that are no pictures are skipped and said so. Hidden files (.DS_Store, ._plain.jpg) are skipped in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vitrail.data.compact import Labels, Names, as_labels
from vitrail.data.pictures import Picture
from vitrail.data.read import ImageError, decode_image, image_format, open_picture, open_regular
from vitrail.data.sources import SPLIT_WORDS, Source, Split
from vitrail.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What the name of a picture may end with, in lower case."""
_ENDINGS = tuple(EXTENSIONS)


class FileSplit(Split):
    """Image files, by path relative to `root`."""

    def __init__(self, root: Path, paths: Iterable[str], labels: Sequence[int] | Labels) -> None:
        self.root, self.labels = root, as_labels(labels)
        self.paths = paths if isinstance(paths, Names) else Names(paths)

    def read(self, i: int) -> Tensor:
        path = self.paths[i]
        with open_regular(self.root / path, path) as file:
            return decode_image(file, path)

    def open(self, i: int) -> Picture:
        return open_picture(self.encoded(i), self.name(i))

    def name(self, i: int) -> str:
        return self.paths[i]

    def encoded(self, i: int) -> bytes:
        path = self.paths[i]
        with open_regular(self.root / path, path) as file:
            return file.read()


def open_folder(root: Path) -> Source:
    """The pictures under `root`. Classes are the folders' names in alphabetical order, those of train/ if it exists."""
    scan = _Scan(root)
    parts = _split_folders(root)
    if not parts and (shards := sorted(root.glob("*.tar"))) and not _subfolders(root):
        raise UserError(f"{root} holds tar shards; name them as '{root}/*.tar' (the first is {shards[0].name})")
    found = {name: scan.classes(folder) for name, folder in (parts or {"train": root}).items()}
    classes = list(found["train"].counts)
    source = Source(root.name or str(root), classes, {}, notes=scan.notes)
    if not classes:
        source.problems.append(_no_classes(parts.get("train", root)))
    source.problems += [
        f"class folder '{name}' in {parts.get('train', root)} has no pictures; add some or remove the folder"
        for name in classes
        if not found["train"].counts[name]
    ]
    for split, (paths, counts) in found.items():
        strangers = [name for name in counts if name not in found["train"].counts and counts[name]]
        source.classes += [name for name in strangers if name not in source.classes]  # label_problems refuses them
        if split != "train" and not len(paths):
            source.notes.append(f"{parts[split]} has no pictures and is left out")
            continue
        number = {name: k for k, name in enumerate(source.classes)}
        numbers = np.array([number.get(name, 0) for name in counts], np.int64)
        labels = np.repeat(numbers, np.array(list(counts.values()), np.int64))
        source.splits[split] = FileSplit(root, paths, labels)
    scan.conclude()
    return source


def _subfolders(folder: Path) -> list[Path]:
    inside = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__MACOSX")))
    return [entry for entry in inside if entry.is_dir()]


def _split_folders(root: Path) -> dict[str, Path]:
    """{"train": root/train, "val": root/valid, ...}; empty where train/ is missing, or is a class (trains, say)."""
    parts: dict[str, Path] = {}
    for folder in _subfolders(root):
        split = SPLIT_WORDS.get(folder.name.lower())
        if split in parts:
            raise UserError(f"{root} has both {parts[split].name}/ and {folder.name}/; keep one of them")
        if split:
            parts[split] = folder
    if "train" in parts:
        return parts if len(parts) > 1 or _subfolders(parts["train"]) else {}
    if parts and len(parts) == len(_subfolders(root)):
        raise UserError(f"{root} has {' and '.join(f'{p.name}/' for p in parts.values())} but no train/ to learn from")
    return {}


def _no_classes(folder: Path) -> str:
    loose = any(entry.suffix.lower() in EXTENSIONS for entry in folder.iterdir())
    what = "has pictures but no class folders" if loose else "has no class folders"
    return f"{folder} {what}; put the pictures of each class in a folder of its own, such as {folder / 'cat'}/"


class _Found(NamedTuple):
    """The pictures of a split, class by class, and how many each class has."""

    paths: Names
    counts: dict[str, int]


class _Scan:
    """One walk over a tree: the pictures of every class, and what was skipped."""

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, root.resolve()
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []
        self.visited: set[str] = set()  # links followed in this split, so that no picture is listed twice

    def classes(self, folder: Path) -> _Found:
        """The pictures of the class folders in `folder`, class by class in alphabetical order."""
        self.visited = set()
        found = _Found(Names(), {})
        loose = 0
        within = "" if folder == self.root else f"{folder.relative_to(self.root).as_posix()}/"
        for entry in _sorted_entries(folder):
            if entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                if self._enters(entry):
                    before = len(found.paths)
                    self._add_pictures(found.paths, entry.path, f"{within}{entry.name}/")
                    found.counts[entry.name] = len(found.paths) - before
            else:
                loose += self._is_picture(entry)
        if loose and found.counts:
            self.notes.append(f"{loose} pictures in {folder} lie outside its class folders and are left out")
        return found

    def _add_pictures(self, paths: Names, folder: str, within: str) -> None:
        for entry in _sorted_entries(folder):
            # most entries are such, and to tell this much the system is not asked
            if entry.name.lower().endswith(_ENDINGS) and entry.is_file(follow_symlinks=False):
                paths.add(within + entry.name)
            elif entry.is_dir():
                if self._enters(entry):
                    self._add_pictures(paths, entry.path, f"{within}{entry.name}/")
            elif self._is_picture(entry):
                paths.add(within + entry.name)

    def _enters(self, folder: os.DirEntry[str]) -> bool:
        if not folder.is_symlink():
            return True
        target = Path(folder.path).resolve()
        around = target == self.real_root or target in self.real_root.parents or self.real_root in target.parents
        if around or str(target) in self.visited:
            self.notes.append(f"skipped {folder.path}: a link to a folder that is scanned already")
            return False
        self.visited.add(str(target))
        return True

    def _is_picture(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_file():
            what = "a link that points to nothing" if entry.is_symlink() else "no regular file"
            self.notes.append(f"skipped {entry.path}: {what}")
            return False
        extension = os.path.splitext(entry.name)[1].lower()
        if extension in EXTENSIONS or (not extension and _looks_like_picture(entry.path)):
            return True
        self.skipped[extension or "no extension"] += 1
        return False

    def conclude(self) -> None:
        """Notes how many files were no pictures, by extension."""
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            self.notes.append(f"skipped files that are not pictures: {kinds}")


def _sorted_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted([entry for entry in entries if entry.name[0] != "."], key=attrgetter("name"))
    except PermissionError as error:
        raise UserError(f"cannot list the folder {os.fspath(folder)}: permission denied") from error


def _looks_like_picture(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return image_format(file.read(16)) is not None
    except ImageError:
        return False
