"""The page of an inspection: of each analysis how to read it, what the papers found, and the models side by side.

A section is a function from what was found of the models to HTML. Two models stand in one picture with the same axes
where their numbers compare, else below each other. What a model cannot give is said in grey.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import vitrail
from vitrail.comparison import cost
from vitrail.comparison.charts import short_count
from vitrail.comparison.figures import wilson
from vitrail.comparison.inspection_words import ABOUT
from vitrail.comparison.page import note, page, section, strip, table
from vitrail.comparison.pictures_of_layers import Panel, Trace, board, bowls, heat, traces
from vitrail.comparison.studies.pictures import matrices
from vitrail.comparison.subjects import Missing, Story, Subject
from vitrail.interpretability import draw
from vitrail.interpretability.filters import as_pictures

TABLES, HEADS, KEPT = 4, 8, 28  # tables of offsets, heads of each, and filters that are shown
CELLS = 100_000  # of the similarity of positions
DEPTH = "depth, 1 is the last block"


class Told(NamedTuple):
    """One model in a section."""

    label: str
    number: int
    """0 or 1: decides its colour."""
    parts: dict[str, Any]
    """What was found of it, without what is missing."""


def html(story: Story) -> str:
    """The whole page."""
    names = " and ".join(one.label for one in story.cast.subjects)
    contents = " · ".join(f'<a href="#{name}">{escape(ABOUT[name].title)}</a>' for name in story.found)
    head = (
        f'<header><p class="eyebrow">vitrail inspect</p><h1>{escape(names)}</h1>{_head(story)}'
        f'<p class="note">{contents}</p></header>'
    )
    body = [_section(story, name) for name in story.found]
    return page(f"{names}: what it has learned", "\n".join([head, *body]), f"vitrail {vitrail.__version__}")


def _head(story: Story) -> str:
    """Who is looked at, and on which images."""
    asked = story.cast
    facts: list[tuple[str, Callable[[Subject], str]]] = [
        ("weights", lambda one: one.run.weights),
        ("parameters", lambda one: f"{cost.parameters(one.run.model):,}"),
        ("multiply-adds of one image", lambda one: short_count(one.flops)),
        ("right", _accuracy),
    ]
    rows = [[what, *(escape(tell(one)) for one in asked.subjects)] for what, tell in facts]
    shown = (
        f"{asked.subjects[0].total:,} {asked.split} images of {asked.data}, drawn evenly from the classes; the slow "
        "analyses take fewer, as their sections say."
    )
    damaged = f" {len(asked.damaged)} could not be read: {', '.join(asked.damaged[:5])}." if asked.damaged else ""
    told = table(["", *(one.label for one in asked.subjects)], rows)
    return told + note(shown + damaged if asked.data else "No images: only weights are shown.")


def _accuracy(one: Subject) -> str:
    final = one.run.folder / "final.json" if one.run.folder else None
    then = json.loads(final.read_text(encoding="utf-8")) if final and final.exists() else {}
    whole = f"; {then['top1']:.1%} of {then['n']:,} after training" if "top1" in then else ""
    if isinstance(one.right, str):
        return one.right + whole
    low, high = wilson(one.right, one.total)
    return f"{one.right:.1%} of these images ({low:.1%} to {high:.1%}){whole}"


def _section(story: Story, name: str) -> str:
    about, subjects = ABOUT[name], story.cast.subjects
    told = []
    missing: list[str] = []
    for number, (subject, parts) in enumerate(zip(subjects, story.found[name], strict=True)):
        absent = {part: value.why for part, value in parts.items() if isinstance(value, Missing)}
        told.append(Told(subject.label, number, {k: value for k, value in parts.items() if k not in absent}))
        missing += [f"{subject.label}: {why}" if len(subjects) > 1 else why for why in dict.fromkeys(absent.values())]
    present = [one for one in told if one.parts]
    both = story.between.get(name)
    if isinstance(both, Missing):
        missing.append(both.why)
    elif both is not None and len(present) == 2:
        present.append(Told(f"{present[0].label} (up), {present[1].label}", 2, {name: both}))
    reading = f"<p><b>How to read it.</b> {escape(about.reading)}</p><p><b>Papers.</b> {escape(about.papers)}</p>"
    drawn = DRAWN[name](present) if present else ""
    body = f'<div id="{name}"></div>{reading}{drawn}{"".join(note(why) for why in missing)}'
    return section(about.title, body)


def _wide(png: bytes, said: str) -> str:
    """A picture no larger than it is; `said` is for those who do not see it."""
    width = int.from_bytes(png[16:20], "big")
    source = base64.b64encode(png).decode()
    place = f"display:block;width:100%;max-width:{width}px;border-radius:6px;margin:10px 0"
    return f'<img alt="{escape(said)}" style="{place}" src="data:image/png;base64,{source}">'


def _headed(told: Sequence[Told], body: str, one: Told) -> str:
    return f'<h3 style="margin-top:20px">{escape(one.label)}</h3>{body}' if len(told) > 1 else body


def _depth(count: int) -> NDArray[np.float64]:
    return np.arange(1, count + 1) / count


def _by_depth(title: str, up: str, lines: Sequence[Trace], *, log: bool = False, zero: bool = True) -> str:
    """One pair of axes for all models."""
    return _wide(traces(title, [Panel("", lines)], DEPTH, up, log=log, zero=zero), title)


# ---------------------------------------------------------------------- the sections


def _distance(told: Sequence[Told]) -> str:
    def panels(of: str) -> Iterator[Panel]:
        for one in told:
            found = one.parts["attention"]
            sites: list[NDArray[np.float64]] = getattr(found, of)
            places = np.arange(len(sites))
            heads = np.repeat(places, [len(values) for values in sites]), np.concatenate(sites)
            dots = Trace("heads", *heads, style="dots", colour=one.number)
            mean = Trace("mean", places, [values.mean() for values in sites], "line", one.number)
            uniform = found.uniform_distance if of == "distance" else np.ones(len(places))
            yield Panel(one.label, [dots, mean, Trace("uniform attention", places, uniform, "level")])

    drawn = [
        _wide(traces(title, list(panels(of)), "site of attention, first to last", up, zero=True, whole=True), title)
        for title, of, up in (
            ("Mean attention distance", "distance", "pixels"),
            ("Entropy of attention", "entropy_share", "share of uniform"),
        )
    ]
    return "".join(drawn)


def _positions(told: Sequence[Told]) -> str:
    parts = []
    for one in told:
        body = ""
        if "similarity" in one.parts:
            found = one.parts["similarity"]
            high, wide = found.similarity.shape[:2]
            flat = found.similarity.reshape(high * wide, high * wide)
            apart = flat[~np.eye(len(flat), dtype=bool)] if len(flat) > 1 else flat
            low, top = float(apart.min()), float(apart.max())
            step = math.ceil(len(flat) / CELLS**0.5)  # large grids show some of their tiles
            some = found.similarity[::step, ::step]
            tiles, across = some.reshape(-1, high, wide), some.shape[1]
            body += _wide(board(tiles, columns=across, low=low, high=top, side=420 // across), "cosines of positions")
            body += note(
                f"{found.kind} table {found.name}; colours from {low:.2f} to {top:.2f}, the least and the largest "
                f"cosine of different places. Rank correlation of cosine and nearness: {found.correlation:.2f}."
            )
        if "bias" in one.parts:
            body += strip([_offsets(name, table) for name, table in _spread(list(one.parts["bias"].items()), TABLES)])
        parts.append(_headed(told, body, one))
    return "".join(parts)


def _offsets(name: str, table: NDArray[np.float32]) -> tuple[bytes, str]:
    heads = table[:HEADS]
    said = (
        f"<small>{escape(name)}<br>{table.min():.2f} to {table.max():.2f}, {len(heads)} of {len(table)} heads</small>"
    )
    return board(heads, columns=4, side=48), said


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many, evenly from first to last."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in chosen]


def _filters(told: Sequence[Told]) -> str:
    parts = []
    for one in told:
        found = one.parts["filters"]
        if found.filters.shape[1] in (1, 3):
            shown = strip(
                [
                    (board(as_pictures(tiles[:KEPT]), columns=7, side=40), f"<small>{what}</small>")
                    for what, tiles in (
                        (f"principal components, the first {min(KEPT, len(found.components))}", found.components),
                        (f"filters, {min(KEPT, len(found.filters))} of {len(found.filters)}", found.filters),
                    )
                ]
            )
            shown = shown.replace('class="strip"', 'class="gallery"', 1)
        else:
            shown = note(f"filters of {found.filters.shape[1]} channels are no picture")
        parts.append(_headed(told, shown, one))
    lines = []
    for one in told:
        shares = one.parts["filters"].shares
        lines.append(Trace(one.label, np.arange(1, len(shares) + 1), 100 * np.cumsum(shares), "line", one.number))
        lines.append(Trace("", np.arange(1, len(shares) + 1), 100 * _depth(len(shares)), "level"))
    title = "Variance of the filters in the first components (dotted: a flat spectrum)"
    drawn = traces(title, [Panel("", lines)], "components", "% of the variance", zero=True)
    return "".join(parts) + _wide(drawn, title)


def _features(told: Sequence[Told]) -> str:
    parts = []
    for one in told:
        found = one.parts["features"]
        side = found.images.shape[1:3]
        pairs = zip(found.images, found.pca.picture, strict=True)
        both = [np.stack([image / 255, draw.mosaic(colours, side)]) for image, colours in pairs]
        shown = [(board(pair, columns=1), "") for pair in both]
        shares = ", ".join(f"{share:.0%}" for share in found.pca.explained)
        body = strip(shown) + note(f"Red, green and blue hold {shares} of the variance.")
        parts.append(_headed(told, body, one))
    return "".join(parts)


def _receptive(told: Sequence[Told]) -> str:
    lines = [Trace("even over the picture", [0, 1], [0.707, 0.707], "level")]
    parts = []
    for one in told:
        depth, found = one.parts["fields"]
        lines.append(Trace(one.label, depth, found.side50, "line", one.number))
        shares = found.maps / found.maps.max((1, 2), keepdims=True).clip(min=1e-30)
        shown = [
            (heat(np.log10(share.clip(min=1e-3))), f"<small>{escape(name)}<br>{radius:.1f} px</small>")
            for share, name, radius in zip(shares, found.layers, found.radius, strict=True)
        ]
        parts.append(_headed(told, strip(shown) + note(f"Mean over {found.images} images."), one))
    return _by_depth("Side of the square with half of the field", "share of the side", lines) + "".join(parts)


def _cka(told: Sequence[Told]) -> str:
    panels = [(one.label, one.parts["cka"].values) for one in told]
    counts = {f"{one.parts['cka'].images} images" for one in told}
    title = "Unbiased linear CKA"
    return _wide(matrices(title, panels, "block", "block"), title) + note(f"From {', '.join(counts)}.")


def _probes(told: Sequence[Told]) -> str:
    lines = []
    remarks = []
    for one in told:
        found = one.parts["probes"]
        lines.append(Trace(f"{one.label}: mean of places", found.depth, 100 * found.places.mean(1), "line", one.number))
        if np.isfinite(found.cls).any():
            cls = 100 * found.cls.mean(1)
            lines.append(Trace(f"{one.label}: class token", found.depth, cls, "dashed", one.number))
        remarks.append(
            f"{one.label}: {found.n_train} images to fit on, {found.shots} of each class and draw, "
            f"{found.places.shape[1]} draws; {found.n} scored."
        )
    chance = 100 * told[0].parts["probes"].chance
    lines.append(Trace("the commonest class", [0, 1], [chance, chance], "level"))
    return _by_depth("A linear probe on every block", "% right", lines) + "".join(note(text) for text in remarks)


def _residual(told: Sequence[Told]) -> str:
    ratios, cosines = [], []
    for one in told:
        found = one.parts["ratios"]
        depth = _depth(len(found.rows))
        ratios.append(Trace(f"{one.label}: places", depth, found.median, "line", one.number))
        if np.isfinite(found.cls).any():
            ratios.append(Trace(f"{one.label}: class token", depth, found.cls, "dashed", one.number))
        cosines.append(Trace(one.label, depth, found.cosine, "line", one.number))
    return _by_depth(
        "Norm of the skip over that of the branch (places: median)", "ratio", ratios, log=True, zero=False
    ) + (_by_depth("Cosine between what comes in and what goes out", "cosine", cosines, zero=False))


def _localisation(told: Sequence[Told]) -> str:
    parts = []
    for one in told:
        found = one.parts["localisation"]
        chance = 1 / found.maps[0].size
        shown = [
            (heat(values), f"<small>token {row},{column}: peak {sharp:.1f} deviations</small>")
            for (row, column), values, sharp in zip(found.tokens, found.maps, found.sharpness, strict=True)
            if np.isfinite(values).any()
        ]
        said = (
            f"{found.own:.0%} of all tokens are most similar to their own place (by chance {chance:.0%}), whose mean "
            f"rank is {found.mean_rank:.1f} of {found.maps[0].size}. {found.images} images."
        )
        parts.append(_headed(told, strip(shown) + note(said), one))
    return "".join(parts)


def _landscape(told: Sequence[Told]) -> str:
    planes = [(one.label, one.parts["landscape"]) for one in told if "landscape" in one.parts]
    planes = [(label, found) for label, found in planes if np.isfinite(found.losses).any()]
    drawn = ""
    if planes:
        title = "Loss around the weights, in steps of their filters' norms"
        drawn = _wide(bowls(title, [(label, found.offsets, found.losses) for label, found in planes]), title)
        middles = (
            f"{label}: {found.losses[len(found.offsets) // 2, len(found.offsets) // 2]:.3f} in the middle, "
            f"{found.images} images."
            for label, found in planes
        )
        drawn += note(" ".join(middles))
    rows = [
        [escape(one.label), f"{found.value:.4g}", f"{found.magnitude:.4g}", "yes" if found.converged else "not yet",
         str(found.images)]
        for one in told
        if (found := one.parts.get("curvature"))
    ]  # fmt: skip
    return drawn + (table(["model", "top eigenvalue", "largest by size", "converged", "images"], rows) if rows else "")


def _maps(told: Sequence[Told]) -> str:
    parts = []
    for one in told:
        body = ""
        for looks in zip(*one.parts.values(), strict=True):
            first = looks[0]
            right = "" if first.label == first.predicted else f", in the data {first.label}"
            said = escape(f"{first.predicted} {first.probability:.0%}{right}")
            shown = [(draw.thumbnail(first.image), f"<small>{said}<br>{escape(first.file)}</small>")]
            for method, looked in zip(one.parts, looks, strict=True):
                shown.append((draw.thumbnail(looked.overlay), f"<small>{method}<br>peak {looked.peak:.1f}</small>"))
                if looked.heads is not None:
                    heads = np.stack([draw.scale(head) for head in looked.heads[:HEADS]])
                    said = f"<small>its heads, {len(heads)} of {len(looked.heads)}</small>"
                    shown.append((board(heads, columns=3, side=56), said))
            body += strip(shown)
        parts.append(_headed(told, body, one))
    return "".join(parts)


DRAWN: dict[str, Callable[[Sequence[Told]], str]] = {
    "distance": _distance,
    "positions": _positions,
    "filters": _filters,
    "features": _features,
    "receptive": _receptive,
    "cka": _cka,
    "probes": _probes,
    "residual": _residual,
    "localisation": _localisation,
    "landscape": _landscape,
    "maps": _maps,
}
