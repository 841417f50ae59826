"""Everything that was found -> the numbers of compare.json, from which the page is written and nothing else."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vitrail
from vitrail.comparison import measure, standing
from vitrail.comparison.entrants import Entrant
from vitrail.comparison.in_words import in_words
from vitrail.comparison.plan import Plan
from vitrail.run import best_device, read_recipe
from vitrail.training.features import scored_split

Numbers = dict[str, Any]
NOT_COMPARED = ("model", "seed", "data.source", "data.limit")  # settings that differ by design


class Found(NamedTuple):
    """What the runs answered. The keys of the mappings are labels."""

    answers: Mapping[float, Mapping[str, standing.BySeed]]
    """By fraction of the training images."""
    costs: Mapping[str, Numbers]
    robustness: Mapping[str, Numbers]
    similarity: Sequence[Numbers]


def numbers(plan: Plan, found: Found) -> Numbers:
    """What compare.json holds: setting, models, differences, fractions, disagreement, robustness, similarity."""
    source, whole = plan.sources[0], found.answers[1.0]
    models = [_model(one, plan, found) for one in plan.entrants]
    models.sort(key=lambda model: -model["accuracy"]["top1"])  # the order of the page
    labels = [model["label"] for model in models]
    first = {label: whole[label][0] for label in labels}
    return {
        "setting": _setting(plan),
        "models": models,
        "differences": [
            {"one": one, "other": other, **standing.difference(whole[one], whole[other])}
            for one, other in combinations(labels, 2)
        ],
        "fractions": _fractions(plan, found, labels),
        "disagreement": standing.disagreements(first, source.classes),
        "robustness": {label: {**found.robustness[label], **_named(label)} for label in labels},
        "similarity": list(found.similarity),
    }


def _named(label: str) -> Numbers:
    """Who a model is, on a page that is shown to others: no folder."""
    return {"run": label, "weights": "first seed"}


def _setting(plan: Plan) -> Numbers:
    """What was compared on what, for the head of the page."""
    terms, source, device = plan.terms, plan.sources[0], best_device().type
    split = scored_split(source)
    trained = next((one for one in plan.entrants if one.folder is None), None)
    recipe = read_recipe(plan.folder(trained, 0))[0] if trained else None
    return {
        "data": source.name,
        "classes": source.classes,
        "split": split,
        "images": len(source.splits[split]),
        "train_images": len(source.splits["train"]),
        "held_out_by_seed": any("held out" in note for note in source.notes),
        "img_size": terms.recipe.data.img_size,
        "budget": terms.budget,
        "epochs": terms.recipe.schedule.epochs,
        "minutes": terms.minutes,
        "seeds": plan.seeds,
        "recipe": in_words(recipe) if recipe else {},
        "differing": _differing(plan),
        "notes": source.notes,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "vitrail": vitrail.__version__,
        "torch": torch.__version__,
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _model(one: Entrant, plan: Plan, found: Found) -> Numbers:
    answers, spent = found.answers[1.0][one.label], found.costs[one.label]
    folders = [plan.folder(one, seed) for seed in plan.seeds_of(one)]
    recipe = read_recipe(folders[0])[0]
    times = [measure.training(folder) for folder in folders]
    seconds = [each["seconds"] for each in times if each["seconds"]]
    steps = times[0]["steps"]
    return {
        "label": one.label,
        "model": recipe.model.rpartition(":")[2],
        "joined": one.folder is not None,
        "learned_from": Path(recipe.data.source).name if one.folder is not None else None,
        "mixes_by": _mixes_by(spent),
        "epochs": recipe.schedule.epochs,
        "seeds": len(folders),
        "accuracy": standing.accuracy(answers),
        "classes": standing.by_class(answers, len(plan.sources[0].classes)),
        "calibration": standing.calibration(answers),
        **{key: spent[key] for key in ("img_size", "parameters", "flops", "images_per_second", "memory")},
        "train_seconds": statistics.mean(seconds) if seconds else None,
        "train_flops": 3 * spent["flops"] * steps * recipe.data.batch_size if steps else None,
    }


def _mixes_by(spent: Mapping[str, Any]) -> str:
    """How information goes from place to place."""
    words = [word for word, so in (("attention", spent["attends"]), ("convolution", spent["convolves"])) if so]
    return " and ".join(words) or "dense layers"


def _fractions(plan: Plan, found: Found, labels: Sequence[str]) -> list[Numbers]:
    """Accuracy over the part of the training images, and the differences at each part but the whole."""
    if len(plan.fractions) == 1:
        return []
    rows = []
    for fraction in plan.fractions:
        answers = found.answers[fraction]
        present = [label for label in labels if label in answers and not _joined(plan, label)]
        scores = {label: standing.accuracy(answers[label]) for label in present}
        present.sort(key=lambda label, scores=scores: -scores[label]["top1"])  # type: ignore[misc]
        rows.append(
            {
                "fraction": fraction,
                "images": plan.limit(fraction) or len(plan.sources[0].splits["train"]),
                "models": scores,
                "differences": [
                    {"one": one, "other": other, **standing.difference(answers[one], answers[other])}
                    for one, other in combinations(present, 2)
                ],
            }
        )
    return rows


def _joined(plan: Plan, label: str) -> bool:
    return next(one for one in plan.entrants if one.label == label).folder is not None


def _differing(plan: Plan) -> dict[str, dict[str, str]]:
    """The settings in which the recipes of the runs differ beyond their model: setting -> label -> value."""
    recipes = {one.label: dict(_flat(dataclasses.asdict(read_recipe(plan.folder(one, 0))[0]))) for one in plan.entrants}
    keys = next(iter(recipes.values()))
    return {
        key: {label: str(recipe[key]) for label, recipe in recipes.items()}
        for key in keys
        if key not in NOT_COMPARED and len({json.dumps(recipe[key]) for recipe in recipes.values()}) > 1
    }


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{before}{key}.")
        else:
            yield f"{before}{key}", inner
