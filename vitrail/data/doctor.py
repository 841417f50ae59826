"""What is wrong, odd or unbalanced in a set of images: every image of every split is opened and decoded once.

`doctor` returns a dictionary that is JSON as it stands; "some of" is {"count": how many, "listed": the first 50}:

    data, source, classes, in_chans, multi_label, seconds
    notes, problems   sentences: what was skipped, and why the set cannot be trained on as it is
    splits            {split: {"images", "readable", "per_class": {class: images}}}
    imbalance         images of the largest class of train / of the smallest that has any
    damaged           [{"split", "file", "reason"}]
    formats, modes    {"JPEG": images}, {"RGB": images}: as stored (arrays: formats is empty, modes by channels)
    odd_modes         some of {"split", "file", "mode"}: alpha, palette, CMYK, 16 bits, what else is rare here
    misnamed          some of {"split", "file", "content"}: the extension says another format than the content
    turned            some of {"split", "file"}: stored turned or mirrored, EXIF says how
    sizes             {"width", "height": {"min", "median", "max"}}, of the images as they are seen
    small, long       some of {"split", "file", "size"}: files with a side below 32 pixels; longer than 4 : 1
    duplicates        some of [{"split", "file"}, ...]: groups of images with the same bytes, and the number of groups
                      "across_splits", which leak the answer, and with "unlike_labels"
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitrail.data.passes import one_pass
from vitrail.data.read import Header, ImageError, decode_image, read_header
from vitrail.data.sources import Source, Split, class_counts, find_source, label_problems

_LISTED = 50
_SMALL = 32  # pixels
_LONG = 4  # times as long as wide
_PLAIN_MODES = ("RGB", "L", "YCbCr")
_RARE = 0.05  # a plain mode that fewer images have is odd in this set: grey among colour
_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
}


@dataclass(frozen=True)
class Finding:
    """One image, looked at: why it cannot be read ("" if it can), a digest of its bytes, upright width and height."""

    number: int
    name: str
    reason: str = ""
    digest: bytes = b""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    turned: bool = False


def doctor(data: str, *, workers: int = 2, progress: bool = True) -> dict[str, Any]:
    """Looks at every image that `data` names (what `open_source` takes); returns the dictionary described above.

    `workers` processes decode; `progress` shows a bar on standard error where that is a terminal. Labels that cannot
    be trained on are findings here, not errors; UserError is raised only where nothing can be listed.
    """
    began = time.monotonic()
    source = find_source(data)
    found = {name: _look(name, split, workers, progress) for name, split in source.splits.items()}
    everything = [(name, finding) for name, findings in found.items() for finding in findings]
    readable = [(split, finding) for split, finding in everything if not finding.reason]
    return {
        "data": str(data),
        "source": source.name,
        "classes": source.classes,
        "in_chans": source.in_chans,
        "multi_label": source.multi_label,
        "notes": source.notes,
        "problems": [*source.problems, *label_problems(source)],
        "splits": {name: _split_summary(source, source.splits[name], found[name]) for name in found},
        "imbalance": _imbalance(source),
        "damaged": [{**_where(s, f), "reason": f.reason} for s, f in everything if f.reason],
        "formats": dict(Counter(f.format for _, f in readable if f.format).most_common()),
        "modes": dict(Counter(f.mode for _, f in readable).most_common()),
        "odd_modes": _some([{**_where(s, f), "mode": f.mode} for s, f in _odd(readable)]),
        "misnamed": _some([{**_where(s, f), "content": f.format} for s, f in readable if _misnamed(f)]),
        "turned": _some([_where(s, f) for s, f in readable if f.turned]),
        "sizes": {side: _spread([getattr(f, side) for _, f in readable]) for side in ("width", "height")},
        "small": _some([_sized(s, f) for s, f in readable if f.format and min(f.width, f.height) < _SMALL]),
        "long": _some([_sized(s, f) for s, f in readable if max(f.width, f.height) > _LONG * min(f.width, f.height)]),
        "duplicates": _duplicates(source, readable),
        "seconds": round(time.monotonic() - began, 1),
    }


def _look(name: str, split: Split, workers: int, progress: bool) -> list[Finding]:
    return list(one_pass(_Looking(split), f"looking at {name}", workers=workers, progress=progress))


class _Looking:
    """What a worker does: number of an image -> Finding."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Finding:
        name = self.split.name(i)
        try:
            data = self.split.encoded(i)
            return self._array(i, name) if data is None else _file(i, name, data)
        except ImageError as error:
            return Finding(i, name, error.reason)
        except OSError as error:
            return Finding(i, name, str(error.strerror or error))

    def _array(self, i: int, name: str) -> Finding:
        image = self.split.read(i)
        channels, height, width = image.shape
        mode = {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")
        return Finding(i, name, "", hashlib.sha256(image.numpy().tobytes()).digest(), width, height, mode)


def _file(number: int, name: str, data: bytes) -> Finding:
    header: Header = read_header(data, name)
    _, height, width = decode_image(data, name).shape
    digest = hashlib.sha256(data).digest()
    return Finding(number, name, "", digest, width, height, header.mode, header.format, header.turned)


def _where(split: str, finding: Finding) -> dict[str, Any]:
    return {"split": split, "file": finding.name}


def _sized(split: str, finding: Finding) -> dict[str, Any]:
    return {**_where(split, finding), "size": [finding.width, finding.height]}


def _some(rows: list[Any]) -> dict[str, Any]:
    return {"count": len(rows), "listed": rows[:_LISTED]}


def _spread(values: list[int]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _split_summary(source: Source, split: Split, findings: list[Finding]) -> dict[str, Any]:
    readable = sum(not finding.reason for finding in findings)
    return {"images": len(split), "readable": readable, "per_class": class_counts(source, split)}


def _imbalance(source: Source) -> float | None:
    train = source.splits.get("train")
    counts = [count for count in class_counts(source, train).values() if count] if train is not None else []
    return round(max(counts) / min(counts), 2) if counts else None


def _odd(readable: list[tuple[str, Finding]]) -> Iterator[tuple[str, Finding]]:
    modes = Counter(finding.mode for _, finding in readable)
    plain = {mode for mode in modes if mode in _PLAIN_MODES and modes[mode] >= _RARE * len(readable)}
    return ((split, finding) for split, finding in readable if finding.format and finding.mode not in plain)


def _misnamed(finding: Finding) -> bool:
    extension = Path(finding.name).suffix.lower()
    known = any(extension in names for names in _EXTENSIONS.values())
    return known and bool(finding.format) and extension not in _EXTENSIONS[finding.format]


def _duplicates(source: Source, readable: list[tuple[str, Finding]]) -> dict[str, Any]:
    by_digest: dict[bytes, list[tuple[str, Finding]]] = defaultdict(list)
    for split, finding in readable:
        by_digest[finding.digest].append((split, finding))
    groups = [group for group in by_digest.values() if len(group) > 1]
    across = [group for group in groups if len({split for split, _ in group}) > 1]
    unlike = [group for group in groups if len({str(source.splits[s].labels[f.number]) for s, f in group}) > 1]
    worst_first = sorted(groups, key=lambda group: group not in across)
    listed = _some([[_where(s, f) for s, f in group] for group in worst_first])
    return {**listed, "across_splits": len(across), "unlike_labels": len(unlike)}


def print_findings(report: dict[str, Any], console: Console) -> None:
    """Prints what `doctor` returned as tables: what there is, then what to look at."""
    console.print(_overview(report))
    for title, count, rows in _findings(report):
        table = Table(title=Text(f"{title}: {count}", "bold"), title_justify="left", show_header=False)
        for row in rows[:10]:
            table.add_row(*(Text(cell) for cell in row))  # Text: a file may be called [red].jpg
        if count > 10:
            table.add_row(Text(f"and {count - 10} more"))
        console.print(table)
    for sentence in report["notes"]:
        console.print(Text(f"note: {sentence}"))
    for sentence in report["problems"]:
        console.print(Text(f"problem: {sentence}", "bold red"))


def _overview(report: dict[str, Any]) -> Table:
    table = Table(title=Text(report["source"], "bold"), title_justify="left")
    for column in ("split", "images", "damaged", "classes", "smallest class", "largest class"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in report["splits"].items():
        counts = sorted((count, label) for label, count in split["per_class"].items())
        ends = [f"{count} ({label})" for count, label in (counts[0], counts[-1])] if counts else ["", ""]
        damaged = str(split["images"] - split["readable"])
        present = str(sum(count > 0 for count, _ in counts))
        table.add_row(*(Text(cell) for cell in (name, str(split["images"]), damaged, present, *ends)))
    sizes = report["sizes"]
    if sizes["width"]:
        spans = [f"{name} {sizes[name]['min']} to {sizes[name]['max']}" for name in ("width", "height")]
        modes = ", ".join(f"{count} {mode}" for mode, count in report["modes"].items())
        formats = ", ".join(f"{count} {form}" for form, count in report["formats"].items()) or "arrays"
        table.caption = Text(f"{'; '.join(spans)} pixels; {modes}; {formats}")
    return table


def _findings(report: dict[str, Any]) -> list[tuple[str, int, list[list[str]]]]:
    """(title, count, rows of cells) of every kind of finding that occurs."""
    copies = report["duplicates"]
    same = f"duplicates ({copies['across_splits']} across splits, {copies['unlike_labels']} with unlike labels)"
    kinds = [("damaged, left out", len(report["damaged"]), [[e["file"], e["reason"]] for e in report["damaged"]])]
    groups = [[", ".join(f"{e['split']}: {e['file']}" for e in group)] for group in copies["listed"]]
    kinds.append((same, copies["count"], groups))
    for title, key in (
        ("unusual mode", "odd_modes"),
        ("misnamed", "misnamed"),
        ("turned by EXIF", "turned"),
        (f"a side below {_SMALL} pixels", "small"),
        (f"longer than {_LONG} : 1", "long"),
    ):
        rows = [[e["file"], e.get("mode") or e.get("content") or _times(e.get("size"))] for e in report[key]["listed"]]
        kinds.append((title, report[key]["count"], rows))
    return [kind for kind in kinds if kind[1]]


def _times(size: list[int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else ""
