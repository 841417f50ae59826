"""What `vitrail.data.doctor` found, as a piece of the report: the state of the data, then what to look at, folded."""

from __future__ import annotations

from html import escape
from typing import Any

from vitrail.comparison.page import bullets, definitions

LISTED = 12


def checkup(found: dict[str, Any]) -> str:
    """The dictionary that `doctor` returns -> HTML: a line for each thing looked at, and lists of what is unusual."""
    return definitions(_state(found)) + "".join(
        f"<details><summary>{escape(title)}: {count}</summary>{bullets(_shortened(lines, count))}</details>"
        for title, count, lines in _unusual(found)
        if lines
    )


def _state(found: dict[str, Any]) -> dict[str, str]:
    parts = found["splits"]
    images = sum(part["images"] for part in parts.values())
    unread = images - sum(part["readable"] for part in parts.values())
    lines = {
        "Readable": f"all of {images:,} images" if not unread else f"{images - unread:,} of {images:,} images",
        "Duplicates": _duplicates(found["duplicates"]),
    }
    if found["imbalance"] is not None:
        lines["Balance"] = f"the largest class of train has {found['imbalance']:g} times the images of the smallest"
    if found["sizes"]["width"]:
        lines["Size"] = f"{_span(found['sizes']['width'])} wide, {_span(found['sizes']['height'])} high, in pixels"
    stored = [f"{count:,} {name}" for kind in ("formats", "modes") for name, count in found[kind].items()]
    lines["Stored as"] = ", ".join(stored)
    return lines


def _span(size: dict[str, float]) -> str:
    if size["min"] == size["max"]:
        return f"{size['min']:g}"
    return f"{size['min']:g} to {size['max']:g} (median {size['median']:g})"


def _duplicates(copies: dict[str, Any]) -> str:
    if not copies["count"]:
        return "none"
    text = f"{copies['count']:,} images stand there more than once, byte for byte"
    if copies["across_splits"]:
        text += f"; {copies['across_splits']:,} of them in two splits, which makes the score too good"
    if copies["unlike_labels"]:
        text += f"; {copies['unlike_labels']:,} of them under two labels"
    return text


def _unusual(found: dict[str, Any]) -> list[tuple[str, int, list[str]]]:
    """Title, how many there are, and the lines of those that are listed."""

    def lines(entries: list[dict[str, Any]], key: str = "") -> list[str]:
        return [f"{one['split']}: {one['file']}" + (f", {_words(one[key])}" if key else "") for one in entries]

    copies = found["duplicates"]
    some = [
        ("Name and content disagree", "misnamed", "content"),
        ("Unusual colour mode", "odd_modes", "mode"),
        ("Set upright by EXIF", "turned", ""),
        ("Very small", "small", "size"),
        ("Very long", "long", "size"),
    ]
    return [
        ("Problems", len(found["problems"]), found["problems"]),
        ("Damaged", len(found["damaged"]), lines(found["damaged"], "reason")),
        ("Same image more than once", copies["count"], [" = ".join(lines(group)) for group in copies["listed"]]),
        *((title, found[key]["count"], lines(found[key]["listed"], word)) for title, key, word in some),
    ]


def _words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _shortened(lines: list[str], count: int) -> list[str]:
    return lines if count <= LISTED else [*lines[:LISTED], f"and {count - LISTED} more: see vitrail doctor"]
