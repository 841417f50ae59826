"""Numbers -> inline SVG: curves over epochs and a confusion matrix. Colours are the page's CSS variables, so that the
charts follow its light and dark scheme; every point and cell says its numbers when the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 340, 230
Place = Callable[[float], float]
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 30


class Curve(NamedTuple):
    """One line of a chart: its name, its CSS colour, (epoch, value) points; what is not finite is left out."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


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


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
