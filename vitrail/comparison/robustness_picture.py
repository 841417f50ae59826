"""What robustness.py found of one model or several -> one PNG: tables of error under corruption, curves of accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitrail.interpretability.draw import FAINT, INK, families, png, printable

HEAT = mpl.colormaps["Reds"]
COLOURS = ("#2f5fd0", "#d1344b", "#2a9d78", "#b8790b", "#7b4fb5", "#4a4a55")
LINE = "#e3e6ec"
WIDTH, LEFT, RIGHT = 13.0, 0.65, 0.25  # inches
TITLE, CELL, NAMES, CURVES = 0.62, 0.25, 0.95, 2.3
Found = Mapping[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]


def picture(results: Found | Sequence[Found]) -> bytes:
    """PNG of one result of `robustness`, or of several, each in a colour of its own.

    Above, a table for each: error by corruption and severity, the mean on the right. Below, accuracy over what is
    dropped, shuffled, attacked or resized; the dotted line is guessing.
    """
    results = [results] if isinstance(results, Mapping) else list(results)
    worse = [one["corruptions"] for one in results]
    tables = [TITLE + CELL * len(table["severities"]) * bool(table["rows"]) for table in worse]
    high = sum(tables) + NAMES + 0.55 + CURVES + 0.6
    figure = Figure(figsize=(WIDTH, high), dpi=130, facecolor="white")
    top = high
    for number, (one, tall) in enumerate(zip(results, tables, strict=True)):
        _heading(figure, one, COLOURS[number % len(COLOURS)], top, high)
        if one["corruptions"]["rows"]:
            box = LEFT / WIDTH, (top - tall) / high, 1 - (LEFT + RIGHT) / WIDTH, (tall - TITLE) / high
            _table(figure.add_axes(box), one["corruptions"], last=number == len(results) - 1)
        top -= tall
    panels = len(PANELS)
    each = (WIDTH - LEFT - RIGHT - 0.35 * (panels - 1)) / panels
    for number, (title, about, solid, dashed) in enumerate(PANELS):
        box = (LEFT + number * (each + 0.35)) / WIDTH, 0.55 / high, each / WIDTH, CURVES / high
        axes = figure.add_axes(box)
        _panel(axes, title, about, first=number == 0)
        for one, colour in zip(results, COLOURS * len(results), strict=False):
            axes.axhline(100 / one["classes"], color=FAINT, linewidth=0.8, linestyle=":")
            for curve, style in ((solid(one), "-"), (dashed(one), "--")):
                axes.plot(*_percent(curve), style, color=colour, marker="o", markersize=3, linewidth=1.6)
        if title == "cells shuffled":
            axes.set_xticks(sorted({row["grid"] for one in results for row in one["shuffle"]}))
    return png(figure)


def _heading(figure: Figure, one: Found, colour: str, top: float, high: float) -> None:
    """Two lines above a table: who, and what it comes to."""
    clean, worse = one["clean"], one["corruptions"]
    low, up = clean["interval"]
    facts = [
        f"{clean['top1']:.1%} of {one['n']:,} {one['split']} images of {one['data']} right ({low:.1%} to {up:.1%})",
        f"calibration error {clean['calibration_error']:.3f}",
    ]
    if worse["rows"]:
        facts.append(f"corrupted: {worse['mean_error']:.1%} wrong, calibration error {worse['calibration_error']:.3f}")
    if worse["mce"] is not None:
        facts.append(f"mCE {worse['mce']:.1f} over {worse['baseline']}")
    who = one["run"] if one["run"] in one["weights"] else f"{one['run']}, {one['weights']}"
    lines = ((who, 0.24, 11, colour), (" · ".join(facts), 0.46, 8.5, FAINT))
    for text, down, size, ink in lines:
        weight = "bold" if size > 10 else "normal"
        figure.text(
            LEFT / WIDTH, 1 - (high - top + down) / high, printable(text), fontsize=size, color=ink, weight=weight,
            family=families(), va="center", parse_math=False,
        )  # fmt: skip


def _table(axes: Axes, found: Found, last: bool) -> None:
    """Severities downwards, corruptions across, the mean of each severity in a column of its own."""
    errors = np.array([row["errors"] for row in found["rows"]]).T
    shown = np.concatenate([errors, errors.mean(axis=1, keepdims=True)], axis=1)
    axes.pcolormesh(shown, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    for (severity, column), value in np.ndenumerate(shown):
        ink = "white" if value > 0.6 else INK
        axes.text(column + 0.5, severity + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_ylim(len(shown), 0)
    axes.set_yticks(np.arange(len(shown)) + 0.5, [str(one) for one in found["severities"]], fontsize=8, color=FAINT)
    axes.set_ylabel("wrong, %,\nby severity", fontsize=8, color=FAINT)
    names = [row["corruption"].replace("_", " ") for row in found["rows"]] + ["mean"]
    ticks = np.arange(len(names)) + 0.5
    axes.set_xticks(ticks, names if last else [""] * len(names), fontsize=8.5, color=INK, rotation=35, ha="right")
    axes.tick_params(length=0, pad=2)
    edges = np.cumsum([len(list(members)) for _, members in groupby(row["group"] for row in found["rows"])])
    for edge in edges:
        axes.axvline(edge, color=INK, linewidth=1)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _panel(axes: Axes, title: str, about: tuple[str, str, str], first: bool) -> None:
    """An empty panel of accuracies; `about`: what the axis counts, what the solid and the dashed lines are."""
    axis, solid, dashed = about
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=18, weight="bold")
    styles = f"── {solid}" + (f"   - - {dashed}" if dashed else "")
    axes.text(0, 1.03, styles, transform=axes.transAxes, fontsize=8, color=FAINT, va="bottom")
    axes.set_xlabel(axis, fontsize=8.5, color=FAINT)
    axes.set_ylim(0, 102)
    if first:
        axes.set_ylabel("accuracy, %", fontsize=8.5, color=FAINT)
    axes.tick_params(labelsize=8, labelcolor=FAINT, color=LINE)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _percent(curve: Curve) -> Curve:
    return curve[0], [100 * value for value in curve[1]]


def _dropped(name: str) -> Any:
    """The curve of one kind of occlusion over the share of cells dropped, in percent."""

    def curve(one: Found) -> Curve:
        rows = sorted(one["occlusion"][name], key=lambda row: row["dropped"])
        return [100 * row["dropped"] for row in rows], [row["top1"] for row in rows]

    return curve


def _attacked(name: str) -> Any:
    def curve(one: Found) -> Curve:
        rows = [row for row in one["attacks"] if row["attack"] == name]
        clean = [one["clean"]["top1"]] if rows else []
        return [*[0] * len(clean), *(row["eps_255"] for row in rows)], [*clean, *(row["top1"] for row in rows)]

    return curve


def _resized(name: str) -> Any:
    def curve(one: Found) -> Curve:
        rows = [*one["resolution"][name], {"factor": 1.0, "top1": one["clean"]["top1"]}]
        taken = sorted((row["factor"], row["top1"]) for row in rows if row["top1"] is not None)
        return [factor for factor, _ in taken], [top1 for _, top1 in taken]

    return curve


def _shuffled(one: Found) -> Curve:
    return [row["grid"] for row in one["shuffle"]], [row["top1"] for row in one["shuffle"]]


def _nothing(_one: Found) -> Curve:
    return [], []


PANELS = (
    ("random cells dropped", ("cells dropped, %", "black", "mean colour"), _dropped("random_black"),
     _dropped("random_mean_colour")),
    ("salient cells dropped", ("cells dropped, %", "by its own map", "the others"), _dropped("salient"),
     _dropped("non_salient")),
    ("cells shuffled", ("cells along a side", "one order a batch", ""), _shuffled, _nothing),
    ("attacked", ("largest change of a pixel, of 255", "PGD", "FGSM"), _attacked("pgd"), _attacked("fgsm")),
    ("resized", ("side, as a share", "input size", "detail taken away"), _resized("input"), _resized("coarser")),
)  # fmt: skip
