"""What `vitrail.data.doctor` found, as a piece of the report: the state of the data, then what to look at, folded."""

from __future__ import annotations

from html import escape
from typing import Any

from vitrail.comparison.page import bullets, definitions

LISTED = 12


def checkup(found: dict[str, Any]) -> str:
    """The dictionary that `doctor` returns -> HTML: a line for each thing looked at, and lists of what is unusual."""
    return definitions(_state(found)) + "".join(
        f"<details><summary>{escape(title)}: {len(lines)}</summary>{bullets(_shortened(lines))}</details>"
        for title, lines in _unusual(found)
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
    if not copies["groups"]:
        return "none"
    text = f"{copies['surplus']:,} images repeat another byte for byte"
    if copies["across_splits"]:
        text += f"; {copies['across_splits']:,} times across splits, which makes the score too good"
    if copies["unlike_labels"]:
        text += f"; {copies['unlike_labels']:,} times under another label"
    return text


def _unusual(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    def lines(entries: list[dict[str, Any]], key: str = "") -> list[str]:
        return [f"{one['split']}: {one['file']}" + (f", {_words(one[key])}" if key else "") for one in entries]

    return [
        ("Problems", found["problems"]),
        ("Damaged", lines(found["damaged"], "reason")),
        ("Same image more than once", [" = ".join(lines(group)) for group in found["duplicates"]["listed"]]),
        ("Name and content disagree", lines(found["misnamed"], "content")),
        ("Unusual colour mode", lines(found["odd_modes"], "mode")),
        ("Set upright by EXIF", lines(found["turned"])),
        ("Very small", lines(found["sizes"]["small"], "size")),
        ("Very long", lines(found["sizes"]["long"], "size")),
    ]


def _words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more: see vitrail doctor"]
