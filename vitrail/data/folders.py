"""A folder of class folders: root/CLASS/picture.jpg, or root/train/CLASS/..., with val/ and test/ beside train/.

What is a picture is decided by its extension, or by its first bytes where it has none; whether it is whole is found
when it is read. Links to folders elsewhere are followed; links back into the tree, dangling links, pipes and files
that are no pictures are skipped and said so. Hidden files (.DS_Store, ._plain.jpg) are skipped in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from torch import Tensor

from vitrail.data.read import ImageError, decode_image, image_format, open_regular
from vitrail.data.sources import SPLIT_WORDS, Source, Split
from vitrail.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What the name of a picture may end with, in lower case."""


class FileSplit(Split):
    """Image files, by path relative to `root`."""

    def __init__(self, root: Path, paths: list[str], labels: list[int] | list[list[int]]) -> None:
        self.root, self.paths, self.labels = root, paths, labels

    def read(self, i: int) -> Tensor:
        with open_regular(self.root / self.paths[i], self.paths[i]) as file:
            return decode_image(file, self.paths[i])

    def name(self, i: int) -> str:
        return self.paths[i]

    def encoded(self, i: int) -> bytes:
        with open_regular(self.root / self.paths[i], self.paths[i]) as file:
            return file.read()


def open_folder(root: Path) -> Source:
    """The pictures under `root`. Classes are the folders' names in alphabetical order, those of train/ if it exists."""
    scan = _Scan(root)
    parts = _split_folders(root)
    if not parts and (shards := sorted(root.glob("*.tar"))) and not _subfolders(root):
        raise UserError(f"{root} holds tar shards; name them as '{root}/*.tar' (the first is {shards[0].name})")
    found = {name: scan.classes(folder) for name, folder in (parts or {"train": root}).items()}
    classes = sorted(found["train"])
    source = Source(root.name or str(root), classes, {}, notes=scan.notes)
    if not classes:
        source.problems.append(_no_classes(parts.get("train", root)))
    source.problems += [
        f"class folder '{name}' in {parts.get('train', root)} has no pictures; add some or remove the folder"
        for name in classes
        if not found["train"][name]
    ]
    for split, pictures in found.items():
        strangers = sorted(name for name in pictures if name not in found["train"] and pictures[name])
        source.classes += [name for name in strangers if name not in source.classes]  # label_problems refuses them
        number = {name: k for k, name in enumerate(source.classes)}
        rows = [(path, number[name]) for name in sorted(pictures) for path in pictures[name]]
        if split != "train" and not rows:
            source.notes.append(f"{parts[split]} has no pictures and is left out")
            continue
        source.splits[split] = FileSplit(root, [path for path, _ in rows], [label for _, label in rows])
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


class _Scan:
    """One walk over a tree: the pictures of every class, and what was skipped."""

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, root.resolve()
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []
        self.visited: set[str] = set()  # links followed in this split, so that no picture is listed twice

    def classes(self, folder: Path) -> dict[str, list[str]]:
        """{class name: paths relative to the root} of the class folders in `folder`."""
        self.visited = set()
        pictures: dict[str, list[str]] = {}
        loose = 0
        for entry in _sorted_entries(folder):
            if entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                if self._enters(entry):
                    pictures[entry.name] = self._pictures(entry.path)
            else:
                loose += self._is_picture(entry)
        if loose and pictures:
            self.notes.append(f"{loose} pictures in {folder} lie outside its class folders and are left out")
        return pictures

    def _pictures(self, folder: str) -> list[str]:
        found: list[str] = []
        for entry in _sorted_entries(folder):
            if entry.is_dir():
                if self._enters(entry):
                    found += self._pictures(entry.path)
            elif self._is_picture(entry):
                found.append(Path(os.path.relpath(entry.path, self.root)).as_posix())
        return found

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
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UserError(f"cannot list the folder {os.fspath(folder)}: permission denied") from error


def _looks_like_picture(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return image_format(file.read(16)) is not None
    except ImageError:
        return False
