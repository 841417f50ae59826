"""The sections of a comparison beyond accuracy on all images: fewer images, worse images, what divides the models, and
how alike they are inside."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from vitrail.comparison.charts import Point, Row, Series, colour, heatmap, interval_points, interval_rows
from vitrail.comparison.measure import Look
from vitrail.comparison.page import folded, gallery, legend, note, section, strip, table
from vitrail.comparison.robustness_picture import picture
from vitrail.comparison.standing import told_apart
from vitrail.comparison.summary import corrupted, points, share, shares
from vitrail.interpretability import draw

Numbers = Mapping[str, Any]
Maps = Mapping[str, Sequence[Look]]
THUMBNAIL = 128  # pixels a side
SHOWN_PAIRS = 6  # of models whose likeness is not folded away


def _fewer_images(found: Numbers, _maps: Maps) -> str:
    parts = found["fractions"]
    if not parts:
        return ""
    labels = [model["label"] for model in found["models"] if model["label"] in parts[0]["models"]]
    paint = {model["label"]: colour(k) for k, model in enumerate(found["models"])}
    series = [
        Series(
            label,
            paint[label],
            [Point(part["images"], *(part["models"][label][k] for k in ("top1", "low", "high"))) for part in parts],
            joined=True,
        )
        for label in labels
    ]
    head = ["model", *(f"{part['images']:,} images ({part['fraction']:.0%})" for part in parts)]
    rows = [
        [escape(label), *(f"{share(one['top1'])} ({shares(one)})" for part in parts for one in [part["models"][label]])]
        for label in labels
    ]
    least = parts[0]
    pairs = [
        [escape(f"{gap['one']} − {gap['other']}"), f"{gap['points']:.1f}", points(gap), _verdict(gap)]
        for gap in least["differences"]
    ]
    words = (
        "Images to train on, drawn evenly from the classes; the smaller sets lie within the larger. Every training has "
        "as many epochs as that on all images, so fewer images are fewer steps too: the curves mix less data with less "
        "training, alike for all models. All are scored on the same images."
    )
    body = (
        f'<div class="charts two">{interval_points("Accuracy over training images", series, "training images")}</div>'
    )
    body = legend([(label, paint[label]) for label in labels]) + body + table(head, rows)
    body += f"<h3>Differences with {least['images']:,} images</h3>"
    body += table(["difference", "points", "95% interval", ""], pairs) + note(words)
    return section("With fewer images to learn from", body)


def _verdict(gap: Numbers) -> str:
    return '<span class="right">they differ</span>' if told_apart(gap) else "not told apart"


def _robustness(found: Numbers, _maps: Maps) -> str:
    results = found["robustness"]
    names = [row["corruption"] for row in next(iter(results.values()))["corruptions"]["rows"]]
    if not names:
        return ""
    rows, bars = [], []
    for k, (label, one) in enumerate(results.items()):
        mean, low, high = corrupted(one)
        bars.append(Row(label, colour(k), 100 * mean, 100 * low, 100 * high))
        each = {row["corruption"]: row["mean"] for row in one["corruptions"]["rows"]}
        rows.append(
            [
                escape(label),
                share(one["clean"]["top1"]),
                f"<b>{share(mean)}</b>",
                f"{100 * low:.1f} to {100 * high:.1f}",
                *(share(1 - each[name]) if name in each else "unknown" for name in names),
            ]
        )
    first = next(iter(results.values()))
    severities = ", ".join(map(str, first["corruptions"]["severities"]))
    words = (
        f"Accuracy on {first['n']:,} of the images, drawn evenly from the classes, each corrupted as in ImageNet-C at "
        f"severities {severities}; means over these. The interval is over the images."
    )
    notes = [f"{label}: {text}" for label, one in results.items() for text in one["notes"]]
    head = ["model", "as they are", "corrupted", "95% interval", *(name.replace("_", " ") for name in names)]
    chart = f'<div class="wide">{interval_rows("Accuracy on corrupted images, %", bars, "%")}</div>'
    drawn = f'<div class="sheet">{gallery([([picture(list(results.values()))], "")])}</div>'
    more = folded("severity by severity; pieces dropped, shuffled, resized", drawn)
    return section("When the images get worse", table(head, rows) + "".join(map(note, [words, *notes])) + chart + more)


def _disagreement(found: Numbers, maps: Maps) -> str:
    votes = found["disagreement"]
    counts = table(
        ["images", "number", "share"],
        [
            [escape(name), f"{number:,}", share(number / max(1, found["models"][0]["accuracy"]["n"]))]
            for name, number in [
                ("all models are right", votes["all_right"]),
                ("none is right", votes["none_right"]),
                ("some are right, others wrong", votes["divided"]),
                *((f"only {label} is right", number) for label, number in votes["alone"].items()),
            ]
        ],
    )
    body = counts
    for k, image in enumerate(votes["images"]):
        seen = {label: looks[k] for label, looks in maps.items() if label in image["answers"]}
        photograph = _thumbnail(next(iter(seen.values())), over=False)
        figures = [(photograph, f"<b>{escape(image['true'])}</b><br><small>{escape(image['file'])}</small>")]
        ordered = [label for label in image["answers"] if label in seen]
        figures += [(_thumbnail(seen[label]), _answer(label, image["answers"][label])) for label in ordered]
        body += strip(figures)
    methods = sorted({look.method for looks in maps.values() for look in looks})
    if votes["images"]:
        body += note(
            "Images that some models name rightly and others wrongly, those first on which their probabilities for "
            f"the true class differ most. First seed. Over each image, where the model looked ({', '.join(methods)}), "
            "scaled to each map's own range: maps of different methods do not compare in strength."
        )
    return section("Where they disagree", body)


def _answer(label: str, said: Numbers) -> str:
    kind = "right" if said["right"] else "wrong"
    verdict = f'<span class="{kind}">{escape(said["predicted"])}</span> {share(said["probability"])}'
    return f"{escape(label)}<br>{verdict}"


def _thumbnail(look: Look, over: bool = True) -> bytes:
    image, heat = draw.legible(look.image, look.map, THUMBNAIL)
    return draw.thumbnail(draw.overlay(image, heat) if over else image, THUMBNAIL)


def _similarity(found: Numbers, _maps: Maps) -> str:
    pairs = found["similarity"]
    if not pairs:
        return ""
    charts, rows = [], []
    for pair in pairs:
        values = np.array([[np.nan if v is None else v for v in row] for row in pair["values"]], dtype=np.float64)
        title = f"{pair['one']} ↓ {pair['other']} →"
        charts.append(heatmap(pair["one"], pair["other"], pair["rows"], pair["columns"], _colours(values)))
        if np.isfinite(values).any():
            row, column = np.unravel_index(np.nanargmax(values), values.shape)
            most = f"{values[row, column]:.2f}"
            where = f"{pair['rows'][row]} and {pair['columns'][column]}"
            rows.append([escape(title), most, escape(where), f"{np.nanmean(values):.2f}", f"{values[-1, -1]:.2f}"])
    body = f'<div class="charts small">{"".join(charts[:SHOWN_PAIRS])}</div>'
    if len(charts) > SHOWN_PAIRS:
        rest = f'<div class="charts small">{"".join(charts[SHOWN_PAIRS:])}</div>'
        body += folded(f"the other {len(charts) - SHOWN_PAIRS} pairs", rest)
    head = ["models", "highest", "between the blocks", "mean", "last blocks"]
    words = (
        f"CKA of what every block of one model hands on with every block of the other, on {pairs[0]['images']:,} of "
        "the images, unbiased and in batches: 0 (dark) is unrelated, 1 (light) is the same up to rotation and scale. "
        "First block at the top left. First seed; the same network trained twice is not at 1 either."
    )
    return section("How alike they are inside", body + table(head, rows) + note(words))


def _colours(values: np.ndarray[Any, Any]) -> bytes:
    """PNG of one pixel a value, from 0 (dark) to 1 (light); what is not known is grey."""
    shades = draw.COLOUR_MAP(np.clip(np.nan_to_num(values), 0, 1))[..., :3]
    shades[~np.isfinite(values)] = 0.5
    file = io.BytesIO()
    Image.fromarray((255 * shades).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


BEYOND = (_fewer_images, _robustness, _disagreement, _similarity)
