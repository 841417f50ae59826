"""A CSV (or TSV) of image paths with labels, relative to the table. Its header decides how labels are read:

path,label[,split]            one class an image
path,labels[,split]           several labels an image, separated by |
path,CLASS,CLASS,...[,split]  several labels an image, one column of 0 and 1 for each class
"""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitrail.data.compact import Labels, Names
from vitrail.data.folders import FileSplit
from vitrail.data.sources import SPLIT_WORDS, Source, classes_of
from vitrail.errors import UserError, did_you_mean

_FORM = "it needs the header path,label and a line for each image"


@dataclass(frozen=True)
class Row:
    """One image: its path, the words of its labels, its split."""

    path: str
    words: list[str]
    split: str


@dataclass
class Column:
    """The images of one split, compact, since there may be millions."""

    paths: Names = field(default_factory=Names)
    words: array[int] = field(default_factory=lambda: array("q"))
    """The words of their labels, one image's after the other's, by number."""
    counts: array[int] = field(default_factory=lambda: array("q"))
    """How many words each image has."""


def open_table(path: Path) -> Source:
    """The images that a table lists. Raises UserError, naming the line, for what cannot be read."""
    lines = _lines(path)
    header = _header(path, next(lines, (0, []))[1])
    columns: dict[str, Column] = {}
    numbers: dict[str, int] = {}
    missing: list[str] = []
    gone = 0
    for line, cells in lines:
        row = _row(path, header, line, cells)
        column = columns.setdefault(row.split, Column())
        column.paths.add(row.path)
        column.words.extend(numbers.setdefault(word, len(numbers)) for word in row.words)
        column.counts.append(len(row.words))
        if not os.path.exists(os.path.join(path.parent, row.path)):
            gone += 1
            missing += [f"{row.path} (line {line})"] if gone <= 3 else []
    if not columns:
        raise UserError(f"{path} lists no images; {_FORM}")
    classes = _indicators(header) or classes_of(numbers)
    source = Source(path.stem, classes, {}, multi_label="label" not in header)
    place = {name: k for k, name in enumerate(classes)}
    order = np.array([place[word] for word in numbers], np.int64)
    for split, column in columns.items():
        labels: Labels = order[np.array(column.words, np.int64)]
        if source.multi_label:
            labels = [each.tolist() for each in np.split(labels, np.cumsum(column.counts)[:-1])]
        source.splits[split] = FileSplit(path.parent, column.paths, labels)
    if gone:
        listed = sum(len(column.paths) for column in columns.values())
        source.problems.append(f"{path}: {gone} of {listed} listed files are missing: {', '.join(missing)}")
    return source


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as a table in UTF-8: {error}") from error


def _header(path: Path, cells: list[str]) -> list[str]:
    if not cells:
        raise UserError(f"{path} lists no images; {_FORM}")
    names = [cell.lower() if cell.lower() in ("path", "label", "labels", "split") else cell for cell in cells]
    if "path" not in names:
        raise UserError(f"{path}: the header has no column 'path'{did_you_mean('path', names)}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the header names a column twice")
    if not {"label", "labels"} & set(names) and not _indicators(names):
        raise UserError(f"{path}: the header has no column 'label', 'labels' or one for each class")
    return names


def _indicators(header: list[str]) -> list[str]:
    """The columns of 0 and 1: all but path and split, where there is no column of labels."""
    return [] if {"label", "labels"} & set(header) else [name for name in header if name not in ("path", "split")]


def _row(path: Path, header: list[str], line: int, cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise UserError(f"{path}, line {line}: {len(cells)} cells under a header of {len(header)}")
    cell = dict(zip(header, cells, strict=True))
    if not cell["path"]:
        raise UserError(f"{path}, line {line}: the path is empty")
    split = cell.get("split", "train").lower()
    if split not in SPLIT_WORDS:
        near = did_you_mean(split, SPLIT_WORDS)
        raise UserError(f"{path}, line {line}: '{split}' is no split; use train, val or test{near}")
    return Row(cell["path"], _words(path, header, line, cell), SPLIT_WORDS[split])


def _words(path: Path, header: list[str], line: int, cell: dict[str, str]) -> list[str]:
    if "label" in header:
        if not cell["label"]:
            raise UserError(f"{path}, line {line}: the label is empty")
        return [cell["label"]]
    if "labels" in header:
        return list(dict.fromkeys(word.strip() for word in cell["labels"].split("|") if word.strip()))
    names = _indicators(header)
    wrong = next((name for name in names if cell[name] not in ("0", "1")), None)
    if wrong is not None:
        raise UserError(f"{path}, line {line}: column '{wrong}' is '{cell[wrong]}'; it must be 0 or 1")
    return [name for name in names if cell[name] == "1"]
