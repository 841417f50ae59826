"""A finished run -> `report.html`: one file that opens anywhere, with no font, script or picture from elsewhere.

Every section is a function from the run's story to a piece of HTML, in the order of the page. What a section needs and
cannot have (photographs that were moved, a run that was cut off) is said on the page: a report never costs the run.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vitrail
from vitrail.checkpoint import write_file
from vitrail.comparison import cost
from vitrail.comparison.charts import Curve, confusion_matrix, line_chart, short_count
from vitrail.comparison.checkup import checkup
from vitrail.comparison.figures import figures, metric_of
from vitrail.comparison.in_words import in_words
from vitrail.comparison.page import bar, bullets, cards, definitions, gallery, note, page, section, table
from vitrail.data.doctor import doctor
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.interpretability import draw
from vitrail.interpretability.explain import Explanation, look
from vitrail.run import Run, best_device, load, open_data
from vitrail.training.progress import METRICS

LARGEST_MATRIX = 30  # classes that still make a readable picture
LARGEST_CHECK = 5000  # images that doctor reads within the time a report may take
RIGHT_SHOWN, WRONG_SHOWN = 6, 12
TIMED_FLOPS = 20e9  # multiply-adds of the batch that is timed: about a second a pass on two cores


class Story(NamedTuple):
    """What the sections tell of: all that the folder holds, and the data where they are still there."""

    run: Run
    folder: Path
    log: list[dict[str, Any]]
    final: dict[str, Any]
    source: Source | None
    gone: str
    """Why there is no source."""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` of the run in `folder`, and return its path.

    Raises UserError where `folder` is no run or the page cannot be written. Data that are gone are said on the page.
    """
    story = _read(Path(folder))
    sections = (_headline, _recipe, _curves, _confusion, _classes, _wrong, _right, _cost, _data, _next)
    body = "\n".join(tell(story) for tell in sections)
    stamp = f"vitrail {vitrail.__version__} · torch {torch.__version__} · {time.strftime('%Y-%m-%d %H:%M')}"
    text = page(f"{story.run.recipe.model} on {story.run.recipe.data.source}", body, stamp)
    path = story.folder / "report.html"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # file names need not be text
    return path


def _read(folder: Path) -> Story:
    run = load(folder)
    run.model.to(best_device())
    lines = _text(folder / "log.jsonl").splitlines()
    final = json.loads(_text(folder / "final.json") or "{}")
    source, gone = None, ""
    try:
        source = open_data(run.recipe)
    except (UserError, OSError) as error:
        gone = f"The images could not be opened again: {error}."
    return Story(run, folder, [json.loads(line) for line in lines], final, source, gone)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


# ------------------------------------------------------------------ the sections, from top to bottom


def _headline(story: Story) -> str:
    final, data = story.final, story.run.recipe.data
    facts = [
        f"on <b>{escape(data.source)}</b>",
        f"{len(story.run.classes)} classes",
        f"{data.img_size} × {data.img_size}",
    ]
    for name, split in story.source.splits.items() if story.source else ():
        facts.append(f"{len(split):,} images to {escape({'train': 'train on'}.get(name, name))}")
    head = f'<p class="eyebrow">training report</p><h1>{escape(story.run.recipe.model)}</h1>'
    head += f'<p class="lead">{" · ".join(facts)}</p>'
    if not final:
        return f"<header>{head}{note('This run has no final scores: it was not finished.')}</header>"
    return f"<header>{head}{cards(figures(final, story.run.recipe))}</header>"


def _recipe(story: Story) -> str:
    rows = in_words(story.run.recipe)
    return section("What was trained", definitions(rows) + note("Every setting is in recipe.json beside this page."))


def _curves(story: Story) -> str:
    def points(key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        return [(line["epoch"], factor * line[key]) for line in story.log if line.get(key) is not None]

    held = story.log[-1].get("split", "val") if story.log else "val"
    trained, scored = "var(--second)", "var(--accent)"
    metric = next((line["metric"] for line in story.log if "metric" in line), "top1")
    shares = [
        Curve("train", trained, points(f"train_{metric}", 100)),
        Curve(held, scored, points(f"val_{metric}", 100)),
    ]
    losses = [Curve("train", trained, points("train_loss")), Curve(held, scored, points("val_loss"))]
    rates = [Curve("end of epoch", "var(--third)", points("lr"))]
    charts = [
        line_chart(METRICS[metric].capitalize(), shares, percent=True),
        line_chart("Loss", losses),
        line_chart("Learning rate", rates),
    ]
    if not any(charts):
        return section("Training", note("No epoch was finished, so there is nothing to draw."))
    recipe = story.run.recipe
    softened = recipe.label_smoothing or recipe.augment.mixup or recipe.augment.cutmix
    remark = f"Training loss is taken on augmented images with softened labels: it need not fall below that on {held}."
    return section("Training", f'<div class="charts">{"".join(charts)}</div>{note(remark) if softened else ""}')


def _confusion(story: Story) -> str:
    counts = story.final.get("confusion")
    if not counts:
        return ""
    classes = story.final["classes"]
    every = range(len(classes))
    pairs = [
        (counts[true][said], true, said) for true in every for said in every if true != said and counts[true][said]
    ]
    pairs.sort(reverse=True)
    shown = pairs[:20] if len(classes) > LARGEST_MATRIX else pairs[:8]
    rows = [[escape(classes[true]), escape(classes[said]), f"{n} of {sum(counts[true])}"] for n, true, said in shown]
    listed = table(["is", "was called", "images"], rows) if rows else "<p>No image was taken for another class.</p>"
    if len(classes) > LARGEST_MATRIX:
        return section("Most confused classes", listed)
    matrix = f'<div class="scroll">{confusion_matrix(counts, classes)}</div>'
    return section(
        "What is taken for what", f'<div class="split">{matrix}<div><h3>Most confused</h3>{listed}</div></div>'
    )


def _classes(story: Story) -> str:
    lines = story.final.get("per_class")
    if not lines:
        return ""
    heads = {"average_precision": "average precision", "precision": "precision", "recall": "recall", "f1": "F1"}
    keys = [key for key in heads if key in lines[0]]
    last = "average_precision" if "average_precision" in keys else "f1"
    known = sorted((line for line in lines if line[last] is not None), key=lambda line: line[last])
    rows = [
        [escape(line["class"]), f"{line['n']:,}", *("none" if line[key] is None else bar(line[key]) for key in keys)]
        for line in known + [line for line in lines if line[last] is None]
    ]
    scores = table(["class, worst first", "images", *(heads[key] for key in keys)], rows)
    if len(rows) > LARGEST_MATRIX:
        scores = f"<details><summary>all {len(rows)} classes</summary>{scores}</details>"
    words = (
        "Precision: of the images called so, the share that is. Recall: of the images that are, the share called so."
    )
    words += " F1: their harmonic mean."
    if "average_precision" in keys:
        words += " All three for a yes from probability 0.5 on. Average precision: over all thresholds."
    if story.final.get("auroc") is not None:
        words += (
            f" All classes counting alike, accuracy is {story.final['balanced_accuracy']:.2%} and the area under the "
            f"ROC curve {story.final['auroc']:.3f}. Expected calibration error: {story.final['calibration_error']:.3f}."
        )
    return section("Class by class", scores + note(words))


def _wrong(story: Story) -> str:
    mistakes, several = story.final.get("mistakes"), metric_of(story.final) == "map"
    title = "Mistakes with the highest loss" if several else "Most confident mistakes"
    if mistakes is None:
        return ""
    if not mistakes:
        return section(title, "<p>There are none: every image was named rightly.</p>")
    if story.source is None:
        lines = [f"{m['file']}: {_listed(m['true'])}, called {_listed(m['predicted'])}{_sure(m)}" for m in mistakes]
        return section(title, bullets(lines) + note(story.gone))
    found = list(_looked(story, [(m["index"], m) for m in mistakes[:WRONG_SHOWN]]))
    if not found:
        return section(title, note("None of these images can be read any more."))
    words = f"Beside each image, where the model looked ({found[0][0].method}), scaled to each map's own range."
    return section(title, _gallery([(one, _wrongly(m)) for one, m in found]) + note(words))


def _right(story: Story) -> str:
    if story.source is None or not story.final or metric_of(story.final) != "top1":
        return ""
    labels = story.source.splits[story.final["split"]].labels
    step = max(1, len(labels) // (2 * RIGHT_SHOWN))
    tried = [(i, story.source.classes[int(labels[i])]) for i in range(0, len(labels), step)]  # type: ignore[arg-type]
    right = (
        (one, f'<span class="right">{escape(one.predicted)} {one.probability:.1%}</span>')
        for one, true in _looked(story, tried)
        if one.predicted == true
    )
    found = list(islice(right, RIGHT_SHOWN))
    return section("Some it gets right", _gallery(found)) if found else ""


def _cost(story: Story) -> str:
    model, data = story.run.model, story.run.recipe.data
    assert data.img_size, "the recipe of a run folder is resolved"
    assert data.in_chans, "the recipe of a run folder is resolved"
    flops = cost.flops(model, data.img_size, data.in_chans)
    batch = int(min(64, max(1, TIMED_FLOPS // max(flops, 1))))
    speed = cost.images_per_second(model, (batch, data.in_chans, data.img_size, data.img_size))
    device = next(model.parameters()).device.type
    where = f"CPU, {_counted(torch.get_num_threads(), 'thread')}" if device == "cpu" else device.upper()
    entries = [
        (short_count(cost.parameters(model)), "parameters", f"{cost.parameters(model):,}"),
        (short_count(flops), "multiply-adds an image", "what papers print as FLOPs"),
        (f"{speed:,.0f}", "images a second in use", f"{where}, batches of {batch}"),
    ]
    rates = [line["images_per_s"] for line in story.log if line.get("images_per_s")]
    if rates:
        entries.append(
            (f"{statistics.median(rates):,.0f}", "images a second in training", "reading and augmenting included")
        )
    return section("What it costs", cards(entries))


def _data(story: Story) -> str:
    damaged = json.loads(_text(story.folder / "damaged.json") or "[]")
    body = ""
    if damaged:
        body += f"<p>Damaged, and left out of training and scores: {len(damaged)}</p>{bullets(damaged[:50])}"
        body += note(f"and {len(damaged) - 50} more, in damaged.json") if len(damaged) > 50 else ""
    elif story.log:
        body += "<p>No damaged image was met in training.</p>"
    if story.source is None:
        return section("What doctor found", body + note(story.gone))
    body += "".join(f"<p>{escape(remark)}</p>" for remark in story.source.notes)
    data, images = story.run.recipe.data, sum(len(split) for split in story.source.splits.values())
    if images > LARGEST_CHECK or data.limit is not None:  # a limit hides how many there are
        remark = f"Not every image was looked at for this page: vitrail doctor {shlex.quote(data.source)} does that."
        return section("What doctor found", body + note(remark))
    return section("What doctor found", body + checkup(doctor(data.source)))


def _next(story: Story) -> str:
    run = shlex.quote(str(story.folder))
    commands = {
        f"vitrail predict {run} IMAGE...": "name new images",
        f"vitrail explain {run} IMAGE... --out maps": "see what the model looks at",
        f"vitrail eval {run} DATA": "score it on other images",
        f"vitrail export {run} model.onnx": "take it elsewhere (.safetensors, .onnx, .pt2)",
        f"vitrail train --resume {run}": "go on, where training was cut off",
    }
    if story.final:
        del commands[f"vitrail train --resume {run}"]
    if story.run.recipe.task == "masked_patches":
        start = f"--model {story.run.recipe.model} --initial-checkpoint {run}/model.safetensors"
        commands = {f"vitrail train DATA {start}": "learn classes from here", f"vitrail eval {run} DATA": "score it"}
    width = max(map(len, commands))
    lines = "\n".join(f"{escape(command):<{width}}   <i># {escape(why)}</i>" for command, why in commands.items())
    return section("How to go on", f"<pre>{lines}</pre>")


# ------------------------------------------------------------------ parts of sections


def _looked(story: Story, wanted: Sequence[tuple[int, Any]]) -> Iterator[tuple[Explanation, Any]]:
    """Each image (index in the scored split, what is known of it) explained, but for those that cannot be read now."""
    assert story.source is not None
    split = story.source.splits[story.final["split"]]
    for index, known in wanted:
        try:
            pixels = split.read(index)
        except (UserError, OSError):
            continue
        yield look(story.run, pixels, split.name(index)), known


def _gallery(found: Sequence[tuple[Explanation, str]]) -> str:
    """Images and where the model looked, each with its verdict (HTML)."""
    figures = []
    for one, verdict in found:
        picture, heat = draw.legible(one.image, one.map)
        pictures = [draw.thumbnail(picture), draw.thumbnail(draw.overlay(picture, heat))]
        figures.append((pictures, f"{verdict}<br><small>{escape(one.file)}</small>"))
    return gallery(figures)


def _wrongly(mistake: dict[str, Any]) -> str:
    called = f'<span class="wrong">{escape(_listed(mistake["predicted"]))}</span>{_sure(mistake)}'
    return f"called {called}, is <b>{escape(_listed(mistake['true']))}</b>"


def _listed(classes: str | list[str]) -> str:
    """The class of an image, or its classes."""
    return classes if isinstance(classes, str) else ", ".join(classes) or "nothing"


def _sure(mistake: dict[str, Any]) -> str:
    return f" ({mistake['probability']:.1%})" if "probability" in mistake else ""


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
