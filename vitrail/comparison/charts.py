"""Numbers -> inline SVG: curves, points and bars with intervals, calibration, matrices. Colours are the page's CSS
variables, so that the charts follow its light and dark scheme; what is drawn says its numbers when the pointer rests on
it (a map of colours is one small picture, and does not).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 340, 230
Place = Callable[[float], float]
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 30
WIDE = 640  # of a chart of bars
POINTS_WIDE, POINTS_HIGH = 470, 290
COLOURS = 8  # var(--model-1) to var(--model-8) of the page


class Curve(NamedTuple):
    """One line of a chart: its name, its CSS colour, (epoch, value) points; what is not finite is left out."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


class Point(NamedTuple):
    """A place in a chart, and the interval of its height."""

    x: float
    y: float
    low: float
    high: float


class Series(NamedTuple):
    """What is drawn in one colour: its name, its CSS colour, its points in order, and whether a line joins them."""

    name: str
    colour: str
    points: Sequence[Point]
    joined: bool = False


class Row(NamedTuple):
    """A bar of `interval_rows`, from 0 to `value`, with its interval. All in the unit that is printed."""

    name: str
    colour: str
    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """Images of about the same confidence: the mean confidence, the share that is right, how many they are."""

    confidence: float
    accuracy: float
    images: int


def line_chart(title: str, curves: Sequence[Curve], *, percent: bool = False) -> str:
    """Curves over epochs, with ticks at round numbers. Empty text where no curve has a finite point."""
    curves = [Curve(c.name, c.colour, [(x, y) for x, y in c.points if math.isfinite(y)]) for c in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    y_ticks = ticks(min(ys), max(ys))
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    first, last = min(xs), max(xs)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((y - low) / (high - low) if high > low else 0.5)

    parts = [f'<text class="chart-title" x="0" y="14">{escape(title)}</text>']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        label = f"{y:.4g}%" if percent else _number(y)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{up(y) + 3.5:.1f}" text-anchor="end">{label}</text>')
    for x in (x for x in ticks(first, last) if x == int(x) and first <= x <= last):
        parts.append(f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - 11}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text class="tick" x="{LEFT - 12}" y="{HEIGHT - 11}" text-anchor="end">epoch</text>')
    for curve in curves:
        parts += _curve(curve, across, up, percent)
    parts += _legend(curves)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Rows: true class; columns: predicted. A cell is as strong as its share of the row; mistakes are red."""
    size = len(classes)
    cell = max(22, min(50, 640 // size))
    names = [_short(name) for name in classes]
    longest = max(len(name) for name in names)
    margin = 26 + 6.6 * longest
    width, height = margin + cell * size + 8, margin + cell * size + 8
    middle = margin + cell * size / 2
    parts = [
        f'<text class="axis" x="{middle}" y="12" text-anchor="middle">predicted</text>',
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">true</text>',
    ]
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        y, x = margin + (row + 0.5) * cell, margin + (row + 0.5) * cell
        full = f"<title>{escape(classes[row])}</title>"
        parts.append(
            f'<text class="tick" x="{margin - 6}" y="{y + 3.5:.1f}" text-anchor="end">{full}{escape(name)}</text>'
        )
        turned = f'transform="translate({x + 3.5:.1f} {margin - 6}) rotate(-90)"'
        upright = f'x="{x:.1f}" y="{margin - 6}" text-anchor="middle"'
        parts.append(f'<text class="tick" {upright if longest < 4 else turned}>{full}{escape(name)}</text>')
        for column, count in enumerate(line):
            said = f"{classes[row]} called {classes[column]}: {count} of {sum(line)}"
            parts.append(
                _cell(margin + column * cell, margin + row * cell, cell, count, sum(line), row == column, said)
            )
    return (
        f'<svg class="confusion" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="confusion matrix">{"".join(parts)}</svg>'
    )


def colour(number: int) -> str:
    """The CSS colour of the model of that number, from 0; after eight they come again."""
    return f"var(--model-{number % COLOURS + 1})"


def interval_points(title: str, series: Sequence[Series], across: str) -> str:
    """Points with error bars over a logarithmic axis, which `across` names. Heights are shares, printed in per cent.

    Series of one point have their name beside it. Empty text where nothing can be drawn (x must be above 0).
    """
    series = [one._replace(points=[p for p in one.points if p.x > 0 and math.isfinite(p.y)]) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    marks = ticks(100 * min(p.low for p in points), 100 * max(p.high for p in points))
    first, last = math.log10(min(p.x for p in points)) - 0.08, math.log10(max(p.x for p in points)) + 0.08
    alone = all(len(one.points) == 1 for one in series)
    right = 10 + 6.4 * max(len(_short(one.name)) for one in series) if alone else RIGHT
    span, depth = POINTS_WIDE - LEFT - right, POINTS_HIGH - TOP - BOTTOM - 14

    def along(x: float) -> float:
        return LEFT + span * (math.log10(x) - first) / (last - first)

    def up(y: float) -> float:
        return TOP + depth * (1 - (100 * y - marks[0]) / max(marks[-1] - marks[0], 1e-9))

    parts = [f'<text class="chart-title" x="0" y="14">{escape(title)}</text>']
    for mark in marks:
        y = up(mark / 100)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + span:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{mark:.4g}%</text>')
    places = sorted({point.x for point in points})
    for x in log_ticks(10**first, 10**last) if alone else places:
        place = f'x="{along(x):.1f}" y="{POINTS_HIGH - BOTTOM + 2}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{short_count(x)}</text>')
    middle = LEFT + span / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{POINTS_HIGH - 6}" text-anchor="middle">{escape(across)}</text>'
    )
    for one in series:
        parts += _with_errors(one, along, up)
    if alone:
        parts += _names_beside([(one.name, along(one.points[0].x), up(one.points[0].y)) for one in series])
    return (
        f'<svg viewBox="0 0 {POINTS_WIDE} {POINTS_HIGH}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def interval_rows(title: str, rows: Sequence[Row], unit: str, digits: int = 1) -> str:
    """Horizontal bars from 0, each with its interval as a line: shares, or differences to either side of 0."""
    marks = ticks(min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows)))
    names = [_short(row.name, 40) for row in rows]
    left, right, step = 12 + 6.4 * max(map(len, names)), 64, 26
    span, low, height = WIDE - left - right, marks[0], TOP + step * len(rows) + 22

    def along(x: float) -> float:
        return left + span * (x - low) / max(marks[-1] - low, 1e-9)

    parts = [f'<text class="chart-title" x="0" y="14">{escape(title)}</text>']
    for mark in marks:
        x = f"{along(mark):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 18}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 5}" text-anchor="middle">{mark:.4g}</text>')
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y, ends = TOP + step * (number + 0.5), sorted((along(0), along(row.value)))
        said = f"{row.name}: {row.value:.{digits}f} {unit} ({row.low:.{digits}f} to {row.high:.{digits}f})"
        parts.append(
            f'<g><title>{escape(said)}</title><text class="tick" x="{left - 8:.1f}" y="{y + 3.5:.1f}" '
            f'text-anchor="end">{escape(name)}</text><rect x="{ends[0]:.1f}" y="{y - 7:.1f}" '
            f'width="{ends[1] - ends[0]:.1f}" height="14" rx="2" style="fill:{row.colour}" fill-opacity="0.55"/>'
            f'<path class="error" d="M{along(row.low):.1f} {y:.1f}H{along(row.high):.1f}'
            f'M{along(row.low):.1f} {y - 4:.1f}v8M{along(row.high):.1f} {y - 4:.1f}v8"/>'
            f'<text class="tick" x="{WIDE - right + 8}" y="{y + 3.5:.1f}">{row.value:.{digits}f}</text></g>'
        )
    zero = f"{along(0):.1f}"
    parts.append(f'<line class="zero" x1="{zero}" x2="{zero}" y1="{TOP - 6}" y2="{height - 18}"/>')
    return f'<svg viewBox="0 0 {WIDE} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def reliability(title: str, bins: Sequence[Bin], colour: str) -> str:
    """Accuracy over confidence, bin by bin: on the diagonal, a model is as often right as it says. Larger bins are
    drawn stronger."""
    side, most = HEIGHT - TOP - BOTTOM, max((one.images for one in bins), default=1)
    parts = [f'<text class="chart-title" x="0" y="14">{escape(_short(title, 36))}</text>']
    for mark in (0, 50, 100):
        y, x = TOP + side * (1 - mark / 100), LEFT + side * mark / 100
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{mark}%</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{mark}%</text>')
    parts.append(f'<line class="zero" x1="{LEFT}" y1="{TOP + side}" x2="{LEFT + side}" y2="{TOP}"/>')
    parts.append(f'<text class="axis" x="{LEFT + side / 2}" y="{HEIGHT - 2}" text-anchor="middle">confidence</text>')
    path = " ".join(f"{LEFT + side * b.confidence:.1f},{TOP + side * (1 - b.accuracy):.1f}" for b in bins)
    parts.append(f'<polyline class="curve" points="{path}" style="stroke:{colour}" stroke-opacity="0.35"/>')
    for b in bins:
        said = f"confidence {b.confidence:.1%}: {b.accuracy:.1%} of {b.images:,} images right"
        parts.append(
            f'<circle cx="{LEFT + side * b.confidence:.1f}" cy="{TOP + side * (1 - b.accuracy):.1f}" '
            f'r="{2.5 + 4 * math.sqrt(b.images / most):.1f}" style="fill:{colour}"><title>{said}</title></circle>'
        )
    width = LEFT + side + 2 * RIGHT
    return f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def heatmap(one: str, other: str, rows: Sequence[str], columns: Sequence[str], png: bytes) -> str:
    """A map of colours, one pixel of `png` a cell, first row on top: rows are of `one`, columns of `other`, and the
    first and last of both are named."""
    side, left, top = 200, 20, 58
    parts = [
        f'<text class="chart-title" x="0" y="14">{escape(_short(f"{one} ↓", 30))}</text>',
        f'<text class="chart-title" x="0" y="31">{escape(_short(f"{other} →", 30))}</text>',
        f'<image x="{left}" y="{top}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{base64.b64encode(png).decode()}"/>',
    ]
    for name, x, anchor in ((columns[0], left, "start"), (columns[-1], left + side, "end")):
        parts.append(f'<text class="tick" x="{x}" y="{top - 6}" text-anchor="{anchor}">{escape(_short(name))}</text>')
    for name, x, anchor in ((rows[0], -top, "end"), (rows[-1], -top - side, "start")):
        place = f'transform="rotate(-90)" x="{x}" y="{left - 7}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {place}>{escape(_short(name))}</text>')
    said = escape(f"{one} and {other}, block by block")
    frame = f'viewBox="0 0 {left + side + 10} {top + side + 8}" role="img" aria-label="{said}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`; powers alone where that would be more than eight, and evenly
    spaced numbers where it would be fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    inside = [mark for mark in marks if low <= mark <= high]
    if len(inside) < 2:
        return [mark for mark in ticks(low, high) if low <= mark <= high]
    return inside if len(inside) <= 8 else [mark for mark in inside if mark == 10.0 ** round(math.log10(mark))]


def short_count(number: float) -> str:
    """1.2 G, 34 M, 5.6 k: three digits and a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _curve(curve: Curve, across: Place, up: Place, percent: bool) -> list[str]:
    places = [(across(x), up(y)) for x, y in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="curve" points="{path}" style="stroke:{curve.colour}"/>']
    for (x, y), (epoch, value) in zip(places, curve.points, strict=True):
        said = f"{curve.name}, epoch {epoch:g}: {value:.4g}{'%' if percent else ''}"
        hidden = "" if len(places) == 1 else ' class="point"'
        dot = f'<circle{hidden} cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{curve.colour}">'
        parts.append(f"{dot}<title>{escape(said)}</title></circle>")
    return parts


def _number(value: float) -> str:
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value * 1e4:.4g}e-4"


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    for curve in reversed(curves):
        x -= 6.2 * len(curve.name)
        parts.append(f'<text class="tick" x="{x:.1f}" y="14">{escape(curve.name)}</text>')
        parts.append(f'<circle cx="{x - 8:.1f}" cy="10.5" r="4" style="fill:{curve.colour}"/>')
        x -= 26
    return parts


def _cell(x: float, y: float, side: float, count: int, total: int, right: bool, said: str) -> str:
    share = count / total if total else 0.0
    # the root, so that one mistake in a hundred is still seen
    depth = share if right else math.sqrt(share)
    colour = "var(--accent)" if right else "var(--wrong)"
    parts = [
        f'<g><title>{escape(said)}</title><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2}" height="{side - 2}" '
        f'rx="3" fill="var(--cell)"/>'
    ]
    if count:
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2}" height="{side - 2}" rx="3" fill="{colour}" '
            f'fill-opacity="{0.12 + 0.88 * depth:.2f}"/>'
        )
        ink = "count strong" if depth > 0.5 else "count"
        parts.append(
            f'<text class="{ink}" x="{x + side / 2:.1f}" y="{y + side / 2 + 3.8:.1f}" text-anchor="middle" '
            f'style="font-size:{11 if len(str(count)) < 4 else 8}px">{count}</text>'
        )
    return "".join(parts) + "</g>"


def _with_errors(series: Series, along: Place, up: Place) -> list[str]:
    """The points, their error bars, and the line that joins them."""
    parts = []
    if series.joined:
        path = " ".join(f"{along(p.x):.1f},{up(p.y):.1f}" for p in series.points)
        parts.append(f'<polyline class="curve" points="{path}" style="stroke:{series.colour}"/>')
    for p in series.points:
        x, said = along(p.x), f"{series.name}: {p.y:.1%} ({p.low:.1%} to {p.high:.1%}) at {short_count(p.x)}"
        ends = f"M{x:.1f} {up(p.low):.1f}V{up(p.high):.1f}M{x - 3:.1f} {up(p.low):.1f}h6M{x - 3:.1f} {up(p.high):.1f}h6"
        parts.append(
            f'<g><title>{escape(said)}</title><path class="error" d="{ends}" style="stroke:{series.colour}"/>'
            f'<circle cx="{x:.1f}" cy="{up(p.y):.1f}" r="5" style="fill:{series.colour}"/></g>'
        )
    return parts


def _names_beside(names: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names right of their points (name, x, y), moved down where they would lie on one another."""
    parts: list[str] = []
    lowest = -math.inf
    for name, x, y in sorted(names, key=lambda one: one[2]):
        lowest = max(y, lowest + 13)
        parts.append(f'<text class="tick" x="{x + 9:.1f}" y="{lowest + 3.5:.1f}">{escape(_short(name))}</text>')
    return parts


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
