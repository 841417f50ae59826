"""The numbers of a comparison -> `compare.html`: one file that opens anywhere, and `compare.json` beside it.

Every section is a function from the numbers to a piece of HTML, in the order of the page; it computes nothing. What a
sentence of the summary says stands in a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vitrail.checkpoint import write_file
from vitrail.comparison.charts import (
    Bin,
    Point,
    Row,
    Series,
    colour,
    confusion_matrix,
    interval_points,
    interval_rows,
    reliability,
    short_count,
)
from vitrail.comparison.measure import BATCHES, Look
from vitrail.comparison.page import definitions, folded, note, page, section, table
from vitrail.comparison.standing import told_apart
from vitrail.comparison.summary import points, share, shares, summary
from vitrail.comparison.versus_beyond import BEYOND

Numbers = Mapping[str, Any]
LARGEST_MATRIX = 30  # classes that still make a readable picture


def write_page(found: dict[str, Any], maps: Mapping[str, Sequence[Look]], out: Path) -> Path:
    """Write compare.json and compare.html into `out`, and return the path of the page.

    `maps`: what each model looked at in each of the images of found["disagreement"]["images"].
    """
    found["summary"] = summary(found)
    write_file(out / "compare.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    setting = found["setting"]
    sections = (_head, _terms, _standing, _cost, _against_cost, _differences, _classes, _calibration)
    body = "\n".join([*(tell(found) for tell in sections), *(tell(found, maps) for tell in BEYOND), _limits(found)])
    stamp = f"vitrail {setting['vitrail']} · torch {setting['torch']} · {setting['written']}"
    text = page(f"{len(found['models'])} models on {setting['data']}", body, stamp)
    path = out / "compare.html"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # file names need not be text
    return path


def colours(found: Numbers) -> dict[str, str]:
    """The colour of each model, the same in every chart."""
    return {model["label"]: colour(k) for k, model in enumerate(found["models"])}


def _head(found: Numbers) -> str:
    setting = found["setting"]
    facts = [
        f"on <b>{escape(setting['data'])}</b>",
        f"{len(setting['classes'])} classes",
        f"{setting['train_images']:,} images to train on",
        f"{setting['images']:,} images to {escape(setting['split'])}",
    ]
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in found["summary"])
    title = f"{len(found['models'])} models, one set of images"
    head = f'<p class="eyebrow">comparison</p><h1>{escape(title)}</h1><p class="lead">{" · ".join(facts)}</p>'
    return f'<header>{head}<ul class="findings">{lines}</ul></header>'


def _terms(found: Numbers) -> str:
    """What was equal, and what was not."""
    setting = found["setting"]
    size = setting["img_size"]
    rows = {
        "Images": f"{size} × {size} for all" if size else "each model at its own size: see the table",
        "Budget": _budget(setting),
        "Seeds": f"{setting['seeds']}: weights, order and augmentation"
        + (", and which images are held out" if setting["held_out_by_seed"] else ""),
        "Scored": "after the last epoch, on images that no model trained here has learned; none is chosen by it",
        "Machine": f"{setting['device']}, threads: {setting['threads']}",
        **{key: words for key, words in setting["recipe"].items() if key not in ("Length", "Precision")},
    }
    words = "One recipe for all, its learning rate too: a rate of its own for each kind of network may favour another."
    body = definitions(rows) + note(words)
    if setting["differing"]:
        labels = [model["label"] for model in found["models"]]
        lines = [
            [escape(key), *(escape(values.get(label, "")) for label in labels)]
            for key, values in setting["differing"].items()
        ]
        body += "<h3>Settings that are not the same</h3>" + table(["setting", *labels], lines)
    return section("How they were compared", body)


def _budget(setting: Numbers) -> str:
    if setting["budget"] == "time":
        return f"equal time: {setting['minutes']:g} minutes of training each, in whole epochs"
    if setting["budget"] == "flops":
        return f"equal multiply-adds of training: those of the first model in {setting['epochs']} epochs, rounded"
    return f"equal epochs: every model is shown all training images {setting['epochs']} times"


def _named(found: Numbers, label: str) -> str:
    """A model with its colour, as HTML."""
    return f'<span class="legend"><span><i style="background:{colours(found)[label]}"></i>{escape(label)}</span></span>'


# ------------------------------------------------------------------ how good, how costly


def _standing(found: Numbers) -> str:
    models, paint = found["models"], colours(found)
    rows = []
    for model in models:
        accuracy = model["accuracy"]
        by_seed = ", ".join(f"{100 * one:.1f}" for one in accuracy["by_seed"])
        spread = "" if accuracy["spread"] is None else f" (± {100 * accuracy['spread']:.1f})"
        top1 = f"<b>{share(accuracy['top1'])}</b>"
        learned = f"elsewhere, on {model['learned_from']}" if model["joined"] else "here"
        rows.append(
            [
                _named(found, model["label"]),
                top1,
                shares(accuracy),
                by_seed + spread,
                escape(model["mixes_by"]),
                escape(learned),
                f"{model['epochs']}",
            ]
        )
    bars = [
        Row(m["label"], paint[m["label"]], *(100 * m["accuracy"][key] for key in ("top1", "low", "high")))
        for m in models
    ]
    words = (
        f"Interval: Wilson's, over {models[0]['accuracy']['n']:,} images. By seed: the accuracy of each, and their "
        "standard deviation. Mixes by: how information goes from one place of the picture to another."
    )
    head = ["model", "accuracy", "95% interval", "by seed", "mixes by", "trained", "epochs"]
    chart = f'<div class="wide">{interval_rows("Accuracy, %", bars, "%")}</div>'
    return section("How good they are", table(head, rows) + note(words) + chart)


def _cost(found: Numbers) -> str:
    models = found["models"]
    head = ["model", "parameters", "multiply-adds", "training time", "of training"]
    head += [*(f"images/s ({n})" for n in BATCHES), "memory"]
    words = (
        "Multiply-adds: of one image, and of all training (three times that of the images seen). Training time: of the "
        "training steps, reading and augmenting included, scoring left out; mean over the seeds. Images a second: 1 or "
        "32 at once, the model alone, on the machine named above. Memory: the most that is held while 32 images are "
        "answered"
    )
    if models[0]["memory"]["device"] == "cpu":
        words += ", by a process that does nothing else; in brackets what Python and torch took before the model"
    return section("What they cost", table(head, [_cost_row(found, one) for one in models]) + note(words + "."))


def _cost_row(found: Numbers, model: Numbers) -> list[str]:
    memory = model["memory"]
    before = f" ({_bytes(memory['before'])})" if memory["before"] else ""
    return [
        _named(found, model["label"]),
        short_count(model["parameters"]),
        short_count(model["flops"]) + ("" if found["setting"]["img_size"] else f" at {model['img_size']} px"),
        "unknown" if model["train_seconds"] is None else _duration(model["train_seconds"]),
        "unknown" if model["train_flops"] is None else short_count(model["train_flops"]),
        *(f"{model['images_per_second'][str(n)]:,.0f}" for n in BATCHES),
        f"{_bytes(memory['bytes'])}{before}",
    ]


def _bytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _against_cost(found: Numbers) -> str:
    paint = colours(found)

    def chart(title: str, across: str, cost: Any) -> str:
        series = [
            Series(
                m["label"], paint[m["label"]], [Point(cost(m), *(m["accuracy"][k] for k in ("top1", "low", "high")))]
            )
            for m in found["models"]
        ]
        return interval_points(title, series, across)

    charts = [
        chart("Accuracy over multiply-adds", "multiply-adds of one image", lambda m: m["flops"]),
        chart("Accuracy over speed", "images a second, 32 at once", lambda m: m["images_per_second"]["32"]),
        chart("Accuracy over parameters", "parameters", lambda m: m["parameters"]),
        chart("Accuracy over training time", "seconds of training", lambda m: m["train_seconds"] or 0.0),
    ]
    return section("Accuracy against cost", f'<div class="charts two">{"".join(charts)}</div>')


def _differences(found: Numbers) -> str:
    """Pair by pair, in the order of the standing."""
    paint, rows, bars = colours(found), [], []
    for gap in found["differences"]:
        apart = told_apart(gap)
        name = f"{gap['one']} − {gap['other']}"
        bars.append(
            Row(name, paint[gap["one"]] if apart else "var(--faint)", *(gap[k] for k in ("points", "low", "high")))
        )
        verdict = "they differ" if apart else "not told apart"
        rows.append(
            [
                escape(name),
                f"{gap['points']:.1f}",
                points(gap),
                f"{gap['seeds']}",
                "" if gap["p"] is None else f"{gap['p']:.2g}",
                f'<span class="right">{verdict}</span>' if apart else verdict,
            ]
        )
    head = ["difference", "points", "95% interval", "seeds", "McNemar's p", ""]
    words = (
        "Paired: both models answer the same images. With one seed the interval is over images (Agresti and Min) and "
        "says nothing of other seeds; with several it is the wider of that over seeds (Student's t) and that over "
        "images. Each interval stands for itself: of twenty pairs that are alike, one is expected to look different."
    )
    chart = f'<div class="wide">{interval_rows("Difference, points of accuracy", bars, "points")}</div>'
    return section("Which can be told apart", chart + table(head, rows) + note(words))


# ------------------------------------------------------------------ class by class, calibration


def _classes(found: Numbers) -> str:
    classes, models = found["setting"]["classes"], found["models"]
    images = models[0]["classes"]["images"]
    rows = [
        [escape(name), f"{images[k] // models[0]['seeds']:,}", *(_recall(model, k) for model in models)]
        for k, name in enumerate(classes)
    ]
    body = table(["class", "images", *(model["label"] for model in models)], rows)
    if len(classes) > LARGEST_MATRIX:
        body = folded(f"all {len(classes)} classes", body)
    body += note("Of the images of a class, the share that is named rightly; all seeds together.")
    for model in models:
        body += folded(f"what {model['label']} takes for what", _confusion(model["classes"]["confusion"], classes))
    return section("Class by class", body)


def _recall(model: Numbers, k: int) -> str:
    value = model["classes"]["recall"][k]
    return "none" if value is None else share(value)


def _confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    if len(classes) <= LARGEST_MATRIX:
        return f'<div class="scroll">{confusion_matrix(counts, classes)}</div>'
    pairs = sorted(
        ((n, t, s) for t, row in enumerate(counts) for s, n in enumerate(row) if t != s and n), reverse=True
    )[:20]
    rows = [[escape(classes[t]), escape(classes[s]), f"{n} of {sum(counts[t])}"] for n, t, s in pairs]
    return table(["is", "was called", "images"], rows)


def _calibration(found: Numbers) -> str:
    paint, rows, charts = colours(found), [], []
    for model in found["models"]:
        one, label = model["calibration"], model["label"]
        gap = one["confidence"] - model["accuracy"]["top1"]
        lean = "too sure" if gap > 0 else "not sure enough"
        rows.append(
            [
                _named(found, label),
                f"{one['error']:.3f}",
                f"{one['scaled']:.3f}",
                f"{one['temperature']:.2f}",
                share(one["confidence"]),
                share(model["accuracy"]["top1"]),
                lean,
            ]
        )
        charts.append(reliability(label, [Bin(**each) for each in one["bins"]], paint[label]))
    head = ["model", "calibration error", "after scaling", "temperature", "mean confidence", "accuracy", ""]
    words = (
        "Expected calibration error: the mean distance between confidence and accuracy in 15 bins. Scaling: the "
        "temperature of one half of the images, applied to the other half. Label smoothing makes models less sure than "
        "they are right: compare after scaling."
    )
    drawn = f'<div class="charts small">{"".join(charts)}</div>'
    return section("Whether their confidence can be trusted", table(head, rows) + note(words) + drawn)


def _limits(found: Numbers) -> str:
    """What the page does not say."""
    words = [
        "These are these models, on these images, with this recipe and budget: not all networks of their kind.",
        "A longer training, weights from a larger set of images, or a recipe of its own for each may turn the order.",
    ]
    if found["setting"]["budget"] == "epochs":
        words.append("Equal epochs are not equal cost: the table says how much each has computed.")
    lines = "".join(f"<li>{escape(word)}</li>" for word in [*words, *found["setting"]["notes"]])
    return section("What this does not say", f"<ul>{lines}</ul>")
