"""What the studies' own pictures are made of: curves with every seed shown, and matrices side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from vitrail.interpretability.draw import FAINT, INK, families, png, printable

COLOURS = ("#2f5fd0", "#d9822b", "#2a9d78", "#a03fb0", "#d1344b", "#6b6b76")
GRID = "#e3e6ec"


class Line(NamedTuple):
    """A curve: its name, where its points are, and the values of each point, seed by seed."""

    name: str
    x: Sequence[float]
    values: Sequence[NDArray[np.floating]]


def curves(title: str, lines: Sequence[Line], across: str, up: str, *, log: bool = True, log_up: bool = False) -> bytes:
    """PNG: each line through the means of its points, a faint dot for every seed. `log` is of the horizontal axis."""
    figure = Figure(figsize=(8.0, 4.6), dpi=130, facecolor="white")
    axes = figure.add_axes((0.1, 0.13, 0.87, 0.74))
    headline(figure, title)
    for line, colour in zip(lines, COLOURS, strict=False):
        means = [float(value.mean()) for value in line.values]
        axes.plot(line.x, means, "-o", color=colour, linewidth=2, markersize=5, label=printable(line.name))
        for x, value in zip(line.x, line.values, strict=True):
            axes.plot([x] * value.size, value.ravel(), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
    if log:
        axes.set_xscale("log")
    if log_up:
        axes.set_yscale("log")
    places = sorted({x for line in lines for x in line.x})
    axes.set_xticks(places, [f"{x:,.4g}" if x < 1e4 else f"{x:,.0f}" for x in places])
    axes.minorticks_off()
    plain(axes, across, up)
    axes.legend(frameon=False, fontsize=9, prop={"family": families(), "size": 9})
    return png(figure)


class Dots(NamedTuple):
    """Values in columns, one array for each: of one colour."""

    name: str
    columns: Sequence[NDArray[np.floating]]


def dots(title: str, groups: Sequence[Dots], across: str, up: str) -> bytes:
    """PNG: a dot for each value in its column, groups beside each other; a line at 100, where all is even."""
    figure = Figure(figsize=(8.0, 4.6), dpi=130, facecolor="white")
    axes = figure.add_axes((0.1, 0.13, 0.87, 0.74))
    headline(figure, title)
    for index, (group, colour) in enumerate(zip(groups, COLOURS, strict=False)):
        shift = 0.16 * (index - (len(groups) - 1) / 2)
        for column, values in enumerate(group.columns):
            axes.plot([column + shift] * len(values), values, "o", color=colour, alpha=0.75, markersize=6,
                      markeredgewidth=0, label=printable(group.name) if column == 0 else None)  # fmt: skip
    axes.axhline(100, color=FAINT, linewidth=1, linestyle=":")
    axes.set_xticks(range(max(len(group.columns) for group in groups)))
    plain(axes, across, up)
    axes.legend(frameon=False, fontsize=9, prop={"family": families(), "size": 9})
    return png(figure)


def matrices(title: str, panels: Sequence[tuple[str, ArrayLike]], across: str, up: str) -> bytes:
    """PNG: matrices with values from 0 to 1 side by side, first row at the bottom, one colour bar."""
    figure = Figure(figsize=(4.1 * len(panels) + 0.9, 4.6), dpi=130, facecolor="white")
    headline(figure, title)
    width = 1 - 0.9 / figure.get_figwidth()
    shown = None
    for index, (name, values) in enumerate(panels):
        left = (index + 0.16) * width / len(panels)
        axes = figure.add_axes((left, 0.13, 0.8 * width / len(panels), 0.68))
        shown = axes.imshow(np.asarray(values), origin="lower", vmin=0, vmax=1, cmap="magma", aspect="auto")
        axes.set_title(printable(name), fontsize=9.5, color=FAINT, loc="left", parse_math=False, family=families())
        plain(axes, across, up if index == 0 else "", grid=False)
    assert shown is not None, "no matrix to draw"
    bar = figure.colorbar(shown, cax=figure.add_axes((width + 0.005, 0.13, 0.014, 0.68)))
    bar.ax.tick_params(labelsize=8.5, labelcolor=FAINT)
    return png(figure)


def headline(figure: Figure, title: str) -> None:
    """The title, upper left."""
    place = 0.02, 1 - 0.28 / figure.get_figheight()
    figure.text(*place, printable(title), fontsize=12, color=INK, va="center", parse_math=False, family=families())


def plain(axes: Axes, across: str, up: str, *, grid: bool = True) -> None:
    """Labels, light grid, no frame."""
    axes.set_xlabel(across, fontsize=9.5, color=FAINT)
    axes.set_ylabel(up, fontsize=9.5, color=FAINT)
    axes.tick_params(labelsize=8.5, labelcolor=FAINT, color=GRID, length=0)
    if grid:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
