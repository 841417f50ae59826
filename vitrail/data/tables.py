"""A CSV (or TSV) of image paths with labels, relative to the table. Its header decides how labels are read:

path,label[,split]            one class an image
path,labels[,split]           several labels an image, separated by |
path,CLASS,CLASS,...[,split]  several labels an image, one column of 0 and 1 for each class
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from vitrail.data.folders import FileSplit
from vitrail.data.sources import SPLIT_WORDS, Source, number_labels
from vitrail.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Row:
    """One image: its line in the table, its path, the words of its labels, its split."""

    line: int
    path: str
    words: list[str]
    split: str


def open_table(path: Path) -> Source:
    """The images that a table lists. Raises UserError, naming the line, for what cannot be read."""
    lines = _lines(path)
    header = _header(path, lines[0][1]) if lines else []
    rows = [_row(path, header, line, cells) for line, cells in lines[1:]]
    if not rows:
        raise UserError(f"{path} lists no images; it needs the header path,label and a line for each image")
    classes, _ = number_labels([word for row in rows for word in row.words])
    if indicators := _indicators(header):
        classes = indicators
    number = {name: k for k, name in enumerate(classes)}
    source = Source(path.stem, classes, {}, multi_label="label" not in header)
    for split in dict.fromkeys(row.split for row in rows):
        mine = [row for row in rows if row.split == split]
        several = [[number[word] for word in row.words] for row in mine]
        labels = several if source.multi_label else [each[0] for each in several]
        source.splits[split] = FileSplit(path.parent, [row.path for row in mine], labels)
    missing = [row for row in rows if not os.path.exists(path.parent / row.path)]
    if missing:
        names = ", ".join(f"{row.path} (line {row.line})" for row in missing[:3])
        source.problems.append(f"{path}: {len(missing)} of {len(rows)} listed files are missing: {names}")
    return source


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as a table in UTF-8: {error}") from error


def _header(path: Path, cells: list[str]) -> list[str]:
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
    return Row(line, cell["path"], _words(path, header, line, cell), SPLIT_WORDS[split])


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
