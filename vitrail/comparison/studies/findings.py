"""What a study found -> a table to read (Markdown), numbers to use (JSON), a picture to look at (PNG)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitrail import checkpoint
from vitrail.comparison.studies.verdict import NOT_SEEN, OPPOSITE, SEEN, Interval, overall
from vitrail.interpretability.draw import FAINT, INK, families, png, printable

BLUE, LINE = "#2f5fd0", "#e3e6ec"
COLOURS = {SEEN: "#2a9d78", NOT_SEEN: FAINT, OPPOSITE: "#d1344b"}


@dataclass(frozen=True)
class ArmFound:
    """One way to train, and how it did with each seed."""

    name: str
    about: str
    model: str
    images: int
    epochs: int
    compute: float
    """Of training, as a multiple of the first arm compared."""
    metric: str
    scores: list[float]
    """In percent, seed by seed."""


@dataclass(frozen=True)
class ContrastFound:
    """A difference between arms, with its interval."""

    says: str
    decides: bool
    interval: Interval


@dataclass(frozen=True)
class Findings:
    """All that a study found."""

    study: str
    about: str
    setting: dict[str, Any]
    arms: list[ArmFound]
    contrasts: list[ContrastFound]

    @property
    def verdict(self) -> str:
        """Of the whole claim, from the contrasts that decide."""
        return overall([one.interval.verdict for one in self.contrasts if one.decides])


def write(found: Findings, out: Path) -> None:
    """OUT/STUDY.json, .md and .png."""
    out.mkdir(parents=True, exist_ok=True)
    for ending, content in (("json", as_json(found)), ("png", picture(found)), ("md", markdown(found))):
        checkpoint.write_file(out / f"{found.study}.{ending}", content)


def as_json(found: Findings) -> str:
    """Every number, as JSON text."""
    contrasts = [
        {**asdict(one), "low": one.interval.low, "high": one.interval.high, "verdict": one.interval.verdict}
        for one in found.contrasts
    ]
    value = {**asdict(found), "verdict": found.verdict, "contrasts": contrasts}
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def markdown(found: Findings) -> str:
    """The page of a study: the verdict, the tables, the picture, then what was claimed and how it was tested."""
    title, _, rest = found.about.strip().partition("\n")
    setting = found.setting
    head = (
        f"{setting['data']}, scale {setting['scale']}: {setting['seeds']} seeds, {setting['test_images']:,} test "
        f"images, {setting['img_size']} x {setting['img_size']} pixels, batches of {setting['batch_size']}, on "
        f"{setting['device']} (vitrail {setting['vitrail']}, torch {setting['torch']})."
    )
    note = (
        "Points are percentage points of accuracy, the interval is 95 % and the wider of two: over the seeds "
        "(Student's t) and over the test images, both paired. Above 0 is what is claimed. Compute is that of training, "
        "pre-training included, relative to the first arm compared."
    )
    parts = [f"# {title}", f"**{found.verdict.capitalize()}.** {head}", contrast_table(found), arm_table(found)]
    return "\n\n".join([*parts, note, f"![{found.study}]({found.study}.png)", f"```\n{rest.strip()}\n```"]) + "\n"


def contrast_table(found: Findings) -> str:
    """Markdown: what was compared, by how many points it differs, the interval, the verdict."""
    lines = ["| compared | points | 95 % interval | |", "|---|---:|---:|---|"]
    for one in found.contrasts:
        value = one.interval
        verdict = f"**{value.verdict}**" if one.decides else value.verdict
        lines.append(f"| {one.says} | {value.mean:+.1f} | {value.low:+.1f} to {value.high:+.1f} | {verdict} |")
    return "\n".join(lines)


def arm_table(found: Findings) -> str:
    """Markdown: arm by arm, what was trained, what it cost, how it did."""
    lines = ["| arm | model | images x epochs | compute | mean | each seed |", "|---|---|---:|---:|---:|---|"]
    for arm in found.arms:
        mean = f"{np.mean(arm.scores):.1f} %" + ("" if arm.metric == "top1" else f" ({arm.metric})")
        each = ", ".join(f"{score:.1f}" for score in arm.scores)
        trained = f"{arm.images:,} x {arm.epochs}"
        lines.append(f"| {arm.about} | `{arm.model}` | {trained} | {arm.compute:.2f} | {mean} | {each} |")
    return "\n".join(lines)


# ------------------------------------------------------------------ the picture


def picture(found: Findings) -> bytes:
    """PNG: above, the accuracy of each arm, a dot a seed; below, each difference with its interval about 0."""
    arms = [arm for arm in found.arms if arm.metric == "top1"]
    rows = len(arms), len(found.contrasts)
    high = 2.55 + 0.34 * sum(rows)
    figure = Figure(figsize=(9.6, high), dpi=130, facecolor="white")
    topic, _, claim = found.about.strip().splitlines()[0].partition(": ")
    setting = found.setting
    under = f"{setting['data']}, scale {setting['scale']}, {setting['seeds']} seeds, 95 % intervals"
    head = [(f"{topic}: {found.verdict}", 13, INK), (claim, 9.5, INK), (under, 9, FAINT)]
    for line, (text, size, colour) in enumerate(head):
        place = 0.02, 1 - (0.3 + 0.25 * line) / high
        figure.text(*place, printable(text), fontsize=size, color=colour, parse_math=False, family=families())
    top = 1 - 1.05 / high
    middle = top - 0.34 * rows[0] / high
    upper = figure.add_axes((0.42, middle, 0.55, 0.34 * rows[0] / high))
    lower = figure.add_axes((0.42, 0.55 / high, 0.55, 0.34 * rows[1] / high))
    _rows(upper, [arm.about for arm in arms], "accuracy on the test images, %")
    for y, arm in enumerate(arms):
        upper.plot(arm.scores, [y] * len(arm.scores), "o", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0)
        upper.plot([np.mean(arm.scores)], [y], "|", color=BLUE, markersize=14, markeredgewidth=2.2)
    _rows(lower, [one.says for one in found.contrasts], "difference, points; right of 0: as claimed; round: decides")
    lower.axvline(0, color=INK, linewidth=1)
    for y, one in enumerate(found.contrasts):
        value, colour = one.interval, COLOURS[one.interval.verdict]
        lower.plot([value.low, value.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
        lower.plot([value.mean], [y], "o" if one.decides else "D", color=colour, markersize=7 if one.decides else 5)
    return png(figure)


def _rows(axes: Axes, names: list[str], about: str) -> None:
    """Horizontal rows, the first on top, each with its name on the left."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [printable(name) for name in names], fontsize=9, color=INK, family=families())
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5, labelcolor=FAINT, color=LINE)
    axes.set_xlabel(about, fontsize=9, color=FAINT)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
