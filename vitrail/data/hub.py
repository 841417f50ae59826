"""Image sets of the Hugging Face hub, `hf:NAME[:CONFIG]`, or in a local folder, `hf:FOLDER`, through `datasets`.

Images are fetched as the bytes they were stored as and decoded by our reader, so they pass the same checks as files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrail.data.compact import Labels, as_labels
from vitrail.data.read import ImageError, open_regular
from vitrail.data.sources import SPLIT_WORDS, EncodedSplit, Source, classes_of
from vitrail.errors import UserError

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


class HubSplit(EncodedSplit):
    """Rows of one split of a `datasets` set, whose image column is not decoded."""

    def __init__(self, rows: Any, column: str, labels: Labels, name: str) -> None:
        self.rows, self.column, self.labels, self.prefix = rows, column, labels, name

    def encoded(self, i: int) -> bytes:
        cell = self.rows[i][self.column]
        if cell is None:
            raise ImageError(self.name(i), "the row has no image")
        if cell["bytes"] is not None:
            return cell["bytes"]
        with open_regular(cell["path"], self.name(i)) as file:
            return file.read()

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"


def open_hub(text: str) -> Source:
    """Loads `hf:...`. Raises UserError if `datasets` is missing, the set cannot be loaded, or has no image or label."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{text} needs the package datasets; install it: pip install 'vitrail[data]'") from error
    loaded = _load(text, datasets)
    if not isinstance(loaded, dict):  # one split, saved on its own
        loaded = {"train": loaded}
    first = next(iter(loaded.values()))
    image, label = _image_column(text, first), _label_column(text, first)
    names, multi = _class_names(first.features[label], datasets)
    columns = {split: list(rows[label]) for split, rows in loaded.items() if split in SPLIT_WORDS}
    unlabelled = [split for split, column in columns.items() if -1 in column or None in column]
    notes = [f"split {split} has no labels and is left out" for split in unlabelled]
    notes += [
        f"split {split} is not train, validation or test and is left out" for split in loaded if split not in columns
    ]
    kept = {split: column for split, column in columns.items() if split not in unlabelled}
    classes, numbers = _numbered(names, kept)
    splits = {}
    for split in kept:
        rows = loaded[split].cast_column(image, datasets.Image(decode=False)).select_columns([image])
        splits[SPLIT_WORDS[split]] = HubSplit(rows, image, as_labels(numbers[split]), split)
    return Source(text.removeprefix("hf:"), classes, dict(splits), multi_label=multi, notes=notes)


def _load(text: str, datasets: Any) -> Any:
    name = text.removeprefix("hf:")
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        if folder.is_dir():
            return datasets.load_dataset(str(folder))
        name, _, config = name.partition(":")
        return datasets.load_dataset(name, config or None)
    except Exception as error:  # network, hub, cache, script, format: its many types are one matter to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{text} cannot be loaded by the package datasets: {reason}") from error


def _image_column(text: str, rows: Any) -> str:
    found = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]
    if not found:
        raise UserError(f"{text} has no column of images; it has {', '.join(rows.features)}")
    return found[0]


def _label_column(text: str, rows: Any) -> str:
    said = [name for name in _LABEL_COLUMNS if name in rows.features]
    typed = [name for name, feature in rows.features.items() if type(feature).__name__ == "ClassLabel"]
    if not said and not typed:
        raise UserError(
            f"{text} has no column of labels ({', '.join(_LABEL_COLUMNS)}); it has {', '.join(rows.features)}"
        )
    return (said or typed)[0]


def _class_names(feature: Any, datasets: Any) -> tuple[list[str] | None, bool]:
    """(names if the set says them, whether an image has several)."""
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) else None)
    names = getattr(inner or feature, "names", None) if isinstance(inner or feature, datasets.ClassLabel) else None
    return names, inner is not None


def _numbered(names: list[str] | None, columns: dict[str, list[Any]]) -> tuple[list[str], dict[str, list[Any]]]:
    """Class names, and the labels of each split as class numbers."""
    if names is not None:
        return list(names), columns
    classes = classes_of(str(word) for column in columns.values() for cell in column for word in _as_list(cell))
    number = {name: k for k, name in enumerate(classes)}

    def numbered(cell: Any) -> Any:
        return [number[str(word)] for word in cell] if isinstance(cell, list) else number[str(cell)]

    return classes, {split: [numbered(cell) for cell in column] for split, column in columns.items()}


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]
