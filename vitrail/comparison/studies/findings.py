"""What a study found -> a table to read (Markdown), numbers to use (JSON), a picture to look at (PNG)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitrail import checkpoint
from vitrail.comparison.studies.study import Arm
from vitrail.comparison.studies.verdict import NOT_SEEN, OPPOSITE, SEEN, Interval, overall
from vitrail.interpretability.draw import FAINT, INK, families, png, printable
from vitrail.run import Run

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
class ViewFound:
    """What one arm's models were asked beside the test images' classes."""

    arm: str
    view: str
    about: str
    unit: str
    values: list[float]
    """Seed by seed."""


@dataclass(frozen=True)
class ContrastFound:
    """A difference between arms, with its interval."""

    says: str
    decides: bool
    interval: Interval
    margin: float = 0.0
    unit: str = "points"

    @property
    def verdict(self) -> str:
        return self.interval.verdict(self.margin)


class Shown(NamedTuple):
    """What a study's own picture is drawn from."""

    arms: Sequence[Arm]
    asked: Mapping[str, NDArray[np.float64]]
    """(seeds, images) or (seeds, 1) by `ARM` and `ARM/VIEW`, as in a contrast's weights."""
    run: Callable[[str, int], Run]
    """(arm, seed) -> its trained model."""


@dataclass(frozen=True)
class Findings:
    """All that a study found."""

    study: str
    about: str
    setting: dict[str, Any]
    arms: list[ArmFound]
    contrasts: list[ContrastFound]
    views: list[ViewFound] = field(default_factory=list)
    drawn: bool = False
    """Whether the study has a picture of its own."""

    @property
    def verdict(self) -> str:
        """Of the whole claim, from the contrasts that decide."""
        return overall([one.verdict for one in self.contrasts if one.decides])


def write(found: Findings, out: Path, own: bytes | None = None) -> None:
    """OUT/STUDY.json, .md and .png, and the study's `own` picture as OUT/STUDY_shown.png."""
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, str | bytes] = {".json": as_json(found), ".png": picture(found), ".md": markdown(found)}
    if own:
        files["_shown.png"] = own
    for ending, content in files.items():
        checkpoint.write_file(out / f"{found.study}{ending}", content)


def as_json(found: Findings) -> str:
    """Every number, as JSON text."""
    contrasts = [
        {**asdict(one), "low": one.interval.low, "high": one.interval.high, "verdict": one.verdict}
        for one in found.contrasts
    ]
    value = {**asdict(found), "verdict": found.verdict, "contrasts": contrasts}
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def markdown(found: Findings) -> str:
    """The page of a study: the verdict, the tables, the picture, then what was claimed and how it was tested."""
    title, _, rest = found.about.strip().partition("\n")
    setting = found.setting
    images = f"{setting['test_images']:,} test images, batches of {setting['batch_size']}, " if found.arms else ""
    head = (
        f"{setting['data'] if found.arms else 'No data'}, scale {setting['scale']}: {setting['seeds']} seeds, {images}"
        f"{setting['img_size']} x {setting['img_size']} pixels, on {setting['device']} (vitrail {setting['vitrail']}, "
        f"torch {setting['torch']})."
    )
    note = (
        "Points are percentage points of accuracy, the interval is 95 % and the wider of two: over the seeds "
        "(Student's t) and over the test images, both paired. Above 0 is what is claimed. Compute is that of training, "
        "pre-training included, relative to the first arm compared."
    )
    parts = [f"# {title}", f"**{found.verdict.capitalize()}.** {head}", contrast_table(found)]
    parts += [table for table in (arm_table(found), view_table(found)) if table]
    pictures = [f"{found.study}.png", *([f"{found.study}_shown.png"] if found.drawn else [])]
    parts += [note, *(f"![{found.study}]({file})" for file in pictures), f"```\n{rest.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def contrast_table(found: Findings) -> str:
    """Markdown: what was compared, by how many points it differs, the interval, the verdict."""
    lines = ["| compared | difference | 95 % interval | |", "|---|---:|---:|---|"]
    for one in found.contrasts:
        value = one.interval
        verdict = f"**{one.verdict}**" if one.decides else one.verdict
        mean, low, high = (signed(number) for number in (value.mean, value.low, value.high))
        lines.append(f"| {one.says} | {mean} {one.unit} | {low} to {high} | {verdict} |")
    return "\n".join(lines)


def signed(value: float) -> str:
    """A difference as it is printed: one decimal, two where it is below 1."""
    return f"{value:+.2f}" if abs(value) < 0.995 else f"{value:+.1f}"


def view_table(found: Findings) -> str:
    """Markdown: what else the models were asked, seed by seed; empty where nothing was."""
    if not found.views:
        return ""
    names = {arm.name: arm.about for arm in found.arms}
    lines = ["| asked | arm | mean | each seed |", "|---|---|---:|---|"]
    for one in found.views:
        each = ", ".join(f"{value:.4g}" for value in one.values)
        lines.append(f"| {one.about} | {names.get(one.arm, one.arm)} | {np.mean(one.values):.4g} {one.unit} | {each} |")
    return "\n".join(lines)


def arm_table(found: Findings) -> str:
    """Markdown: arm by arm, what was trained, what it cost, how it did; empty where nothing was trained."""
    if not found.arms:
        return ""
    lines = ["| arm | model | images x epochs | compute | mean | each seed |", "|---|---|---:|---:|---:|---|"]
    for arm in found.arms:
        mean = f"{np.mean(arm.scores):.1f} %" + ("" if arm.metric == "top1" else f" ({arm.metric})")
        each = ", ".join(f"{score:.1f}" for score in arm.scores)
        trained = f"{arm.images:,} x {arm.epochs}"
        lines.append(f"| {arm.about} | `{arm.model}` | {trained} | {arm.compute:.2f} | {mean} | {each} |")
    return "\n".join(lines)


# ------------------------------------------------------------------ the picture


ROW, GAP = 0.34, 0.72  # inches


def picture(found: Findings) -> bytes:
    """PNG: above, the accuracy of each arm, a dot a seed; below, each difference with its interval about 0, one panel
    for each unit."""
    arms = [arm for arm in found.arms if arm.metric == "top1"]
    units = list(dict.fromkeys(one.unit for one in found.contrasts))
    groups = [[one for one in found.contrasts if one.unit == unit] for unit in units]
    panels = [len(arms)] * bool(arms) + [len(rows) for rows in groups]
    high = 1.2 + ROW * sum(panels) + GAP * len(panels)
    figure = Figure(figsize=(9.6, high), dpi=130, facecolor="white")
    _head(figure, found, high)
    top = 1.05
    for number, rows in enumerate(panels):
        bottom = top + ROW * rows
        axes = figure.add_axes((0.42, 1 - bottom / high, 0.55, ROW * rows / high))
        if number < len(panels) - len(groups):
            _accuracies(axes, arms)
        else:
            _differences(axes, groups[number - len(panels)])
        top = bottom + GAP
    return png(figure)


def _head(figure: Figure, found: Findings, high: float) -> None:
    topic, _, claim = found.about.strip().splitlines()[0].partition(": ")
    setting = found.setting
    under = f"{setting['data']}, scale {setting['scale']}, {setting['seeds']} seeds, 95 % intervals"
    lines = [(f"{topic}: {found.verdict}", 13, INK), (claim, 9.5, INK), (under, 9, FAINT)]
    for line, (text, size, colour) in enumerate(lines):
        place = 0.02, 1 - (0.3 + 0.25 * line) / high
        figure.text(*place, printable(text), fontsize=size, color=colour, parse_math=False, family=families())


def _accuracies(axes: Axes, arms: Sequence[ArmFound]) -> None:
    _rows(axes, [arm.about for arm in arms], "accuracy on the test images, %")
    for y, arm in enumerate(arms):
        axes.plot(arm.scores, [y] * len(arm.scores), "o", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0)
        axes.plot([np.mean(arm.scores)], [y], "|", color=BLUE, markersize=14, markeredgewidth=2.2)


def _differences(axes: Axes, contrasts: Sequence[ContrastFound]) -> None:
    _rows(axes, [one.says for one in contrasts], f"difference, {contrasts[0].unit}; right: as claimed; round: decides")
    axes.axvline(0, color=INK, linewidth=1)
    for y, one in enumerate(contrasts):
        value, colour = one.interval, COLOURS[one.verdict]
        if one.margin:
            axes.plot([-one.margin] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=1, linestyle=":")
        axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot([value.mean], [y], "o" if one.decides else "D", color=colour, markersize=7 if one.decides else 5)


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
