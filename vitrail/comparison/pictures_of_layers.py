"""Arrays by layer -> PNG bytes: traces over depth, boards of small maps, bowls of a loss.

Panels beside each other share their vertical axis, so that two models compare by eye. What lies between the tiles of a
board is transparent, for pages light and dark.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitrail.comparison.studies.pictures import COLOURS, headline, plain
from vitrail.interpretability.draw import COLOUR_MAP, FAINT, Pixels, families, png, printable

Floats = NDArray[np.floating]
GAP = 3  # pixels between tiles


class Trace(NamedTuple):
    """Values y (N,) at x (N,). A "level" is a thin dotted line, for what one would expect of no skill or no order."""

    name: str
    x: ArrayLike
    y: ArrayLike
    style: Literal["line", "dashed", "dots", "level"] = "line"
    colour: int = 0
    """Number of the colour; the same for what belongs together."""


class Panel(NamedTuple):
    """One set of axes: its title and what is drawn in it."""

    name: str
    traces: Sequence[Trace]


def traces(
    title: str,
    panels: Sequence[Panel],
    across: str,
    up: str,
    *,
    log: bool = False,
    zero: bool = False,
    whole: bool = False,
) -> bytes:
    """PNG: panels side by side with one vertical axis, logarithmic or from 0 if so wanted; `whole` numbers across.
    Names stand in a legend."""
    figure = Figure(figsize=(10.0, 3.7), dpi=110, facecolor="white")
    headline(figure, title)
    first: Axes | None = None
    for index, panel in enumerate(panels):
        width = 0.925 / len(panels)
        axes = figure.add_axes((0.07 + index * width, 0.15, width - 0.02, 0.66), sharey=first)
        for trace in panel.traces:
            _draw(axes, trace)
        axes.set_title(printable(panel.name), fontsize=9.5, color=FAINT, loc="left", parse_math=False,
                       family=families())  # fmt: skip
        plain(axes, across, "" if first else up)
        axes.tick_params(labelleft=first is None)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if any(trace.name for trace in panel.traces):
            axes.legend(frameon=False, prop={"family": families(), "size": 8.5})
        first = first or axes
    assert first is not None, "nothing to draw"
    if log:
        first.set_yscale("log")
        first.yaxis.set_major_formatter("{x:g}")
        first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        first.minorticks_off()
    if zero:
        first.set_ylim(bottom=0)
    return png(figure)


def _draw(axes: Axes, trace: Trace) -> None:
    look = {"line": "-o", "dashed": "--o", "dots": "o", "level": ":"}[trace.style]
    size = 4.5 if trace.style == "dots" or np.size(trace.x) <= 40 else 0
    axes.plot(
        np.asarray(trace.x),
        np.asarray(trace.y),
        look,
        color=FAINT if trace.style == "level" else COLOURS[trace.colour % len(COLOURS)],
        alpha=0.65 if trace.style == "dots" else 1,
        linewidth=1.3 if trace.style == "level" else 1.8,
        markersize=size,
        markeredgewidth=0,
        label=printable(trace.name) if trace.name else None,
    )


def bowls(title: str, planes: Sequence[tuple[str, Floats, Floats]]) -> bytes:
    """PNG: for each (name, offsets (G,), losses (G, G)) the losses as colours with lines of equal height, one colour
    scale for all, logarithmic. Losses that are not finite stay white."""
    logs = [np.log10(np.where(np.isfinite(losses), losses, np.nan).clip(min=1e-4)) for _, _, losses in planes]
    low, high = min(np.nanmin(one) for one in logs), max(np.nanmax(one) for one in logs)
    levels = np.linspace(low, max(high, low + 1e-3), 17)
    figure = Figure(figsize=(4.1 * len(planes) + 1.1, 4.4), dpi=110, facecolor="white")
    headline(figure, title)
    width = 1 - 1.1 / figure.get_figwidth()
    shown = None
    for index, ((name, offsets, _), heights) in enumerate(zip(planes, logs, strict=True)):
        axes = figure.add_axes(((index + 0.17) * width / len(planes), 0.13, 0.8 * width / len(planes), 0.68))
        shown = axes.contourf(offsets, offsets, heights.T, levels=levels, cmap="viridis")
        axes.contour(offsets, offsets, heights.T, levels=levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, "+", color="white", markersize=10)
        axes.set_title(printable(name), fontsize=9.5, color=FAINT, loc="left", parse_math=False, family=families())
        plain(axes, "first direction", "" if index else "second direction", grid=False)
    assert shown is not None, "no loss to draw"
    bar = figure.colorbar(shown, cax=figure.add_axes((width + 0.01, 0.13, 0.016, 0.68)))
    marks = np.linspace(low, levels[-1], 5)
    bar.set_ticks(list(marks), labels=[f"{10**mark:.3g}" for mark in marks])
    bar.ax.tick_params(labelsize=8.5, labelcolor=FAINT)
    return png(figure)


def heat(values: Floats, *, low: float | None = None, high: float | None = None, side: int = 132) -> bytes:
    """PNG of one map (h, w) in colours, squares up to about `side` pixels; its own range unless given."""
    return board(values[None], columns=1, low=low, high=high, side=side)


def board(
    tiles: Floats, *, columns: int, low: float | None = None, high: float | None = None, side: int = 132
) -> bytes:
    """PNG of tiles in rows of `columns`: maps (N, h, w), coloured from `low` to `high` (their least and largest), or
    pictures (N, h, w, 3) in [0, 1]; each up to about `side` pixels, in whole multiples of theirs, or made smaller."""
    tall = -(-max(tiles.shape[1:3]) // side)  # of large tiles every so many rows and columns become one
    tiles = _smaller(tiles, tall)
    factor = max(1, side // max(tiles.shape[1:3]))
    if tiles.ndim == 3:
        least = float(np.nanmin(tiles)) if low is None else low
        most = float(np.nanmax(tiles)) if high is None else high
        shares = (np.nan_to_num(tiles, nan=least) - least) / max(most - least, 1e-12)
        image = Image.fromarray(_laid((254 * shares.clip(0, 1)).round().astype(np.uint8), columns, factor, 255))
        image.putpalette((COLOUR_MAP(np.arange(256) / 254)[:, :3] * 255).round().astype(np.uint8).tobytes())
        image.info["transparency"] = 255
    else:
        opaque = np.concatenate([tiles, np.ones((*tiles.shape[:3], 1))], axis=3)
        image = Image.fromarray(_laid((opaque * 255).round().astype(np.uint8), columns, factor, 0))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _smaller(tiles: Floats, by: int) -> Floats:
    """Means of squares of `by` x `by`; what is left at the lower and right edge is cut off."""
    if by == 1:
        return tiles
    high, wide = (length // by * by for length in tiles.shape[1:3])
    squares = tiles[:, :high, :wide].reshape(len(tiles), high // by, by, wide // by, by, *tiles.shape[3:])
    return squares.mean((2, 4))


def _laid(tiles: Pixels, columns: int, factor: int, gap: int) -> Pixels:
    """Tiles (N, h, w, ...) in rows, each value `factor` pixels wide, with `gap` between them."""
    tiles = tiles.repeat(factor, 1).repeat(factor, 2)
    count, high, wide = tiles.shape[:3]
    columns = min(columns, count)
    whole = np.full((-(-count // columns) * (high + GAP), columns * (wide + GAP), *tiles.shape[3:]), gap, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (high + GAP), index % columns * (wide + GAP)
        whole[top : top + high, left : left + wide] = tile
    return whole[:-GAP, :-GAP]
