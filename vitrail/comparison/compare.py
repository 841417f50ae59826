"""Several models on one's own images, compared honestly: the same data, split, recipe and budget, and a page.

OUT/settings.json                   what is compared: it is gone on with only as it was begun
OUT/runs/MODEL-SEED[-FRACTION]/     a run folder each, without the checkpoints once it is finished
OUT/pace/MODEL/                     with an equal time for all: a short run that tells how long an epoch takes
OUT/measured/                       what was asked of the runs, see measure.py
OUT/compare.html  compare.json      the page, and every number on it

A run that is finished is not repeated, one that was cut off goes on from its checkpoint. Models, seeds, fractions and
runs can be added later. Every model is scored as it is after its last epoch; none is chosen by its score.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail import checkpoint
from vitrail.comparison import measure, standing
from vitrail.comparison.entrants import (
    Budget,
    Entrant,
    Terms,
    agreed,
    epochs_of,
    image_side,
    joining,
    recipe_of,
    to_train,
)
from vitrail.comparison.plan import Plan
from vitrail.comparison.tally import Found, numbers
from vitrail.comparison.versus import write_page
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.run import open_data
from vitrail.training import loop
from vitrail.training.features import scored_split

Say = Callable[[str], None]
PACE_BATCHES, PACE_EPOCHS = 8, 2  # the first epoch warms up


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def compare(
    data: str | Path,
    models: Sequence[str],
    *,
    runs: Sequence[str | Path] = (),
    epochs: int | None = None,
    seeds: int = 1,
    out: str | Path = "comparison",
    recipe: str | None = None,
    budget: Budget = "epochs",
    minutes: float | None = None,
    img_size: int | None = None,
    limit: int | None = None,
    fractions: Sequence[float] = (1.0,),
    say: Say = _to_stderr,
) -> Path:
    """Train `models` on `data`, each with seeds 0 to `seeds` - 1, have finished `runs` join, and compare all of them.

    `recipe` is one of `vitrail recipes` for all models (None: what `vitrail train` takes); `epochs` its length (None:
    the recipe's own). `budget`: what is equal: epochs; flops, those of the first model for `epochs`; or time, `minutes`
    of training for each. `img_size` None: the images' own where they are small squares, else each model's. `limit`: at
    most so many images of each split. `fractions` of the training images, in (0, 1]: each model is trained on them too,
    for as many epochs; all of them are always among them.

    Returns the path of `out`/compare.html, beside it compare.json. Raises UserError for what cannot be compared or
    trained, before anything is trained, and for an `out` with other settings; errors.Interrupted as training does.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be 1 or more")
    terms = agreed(
        str(data),
        models,
        recipe=recipe,
        epochs=epochs,
        budget=budget,
        minutes=minutes,
        img_size=img_size,
        limit=limit,
    )
    terms, source = _with_size(terms)
    entrants = to_train(models, source, terms)
    entrants += joining(runs, source, terms, [one.label for one in entrants])
    if len(entrants) < 2:
        raise UserError("a comparison needs two models at least: name more with --models, or finished runs with --runs")
    parts = _parts(fractions, source)
    folder = Path(out).resolve()
    with checkpoint.lock(folder):
        _settle(folder, terms)
        paces = {one.label: _pace(one, terms, source, folder, say) for one in entrants if _is_timed(one, terms)}
        epochs_by_label = epochs_of(entrants, terms, paces)
        sources = [source, *(open_data(replace(terms.recipe, seed=seed)) for seed in range(1, seeds))]
        plan = Plan(terms, entrants, epochs_by_label, seeds, parts, sources, folder)
        _train(plan, say)
        return _tell(plan, say)


def _with_size(terms: Terms) -> tuple[Terms, Source]:
    """The terms with the image size of all, where there is one, and the images."""
    source = open_data(terms.recipe)
    if source.multi_label:
        raise UserError(f"{source.name} has several labels an image; models with one label each are compared")
    data = terms.recipe.data
    size = data.img_size or image_side(source)
    return replace(terms, recipe=replace(terms.recipe, data=replace(data, img_size=size))), source


def _parts(fractions: Sequence[float], source: Source) -> list[float]:
    """The fractions in order, with 1. Raises UserError for one that means nothing or leaves a class without images."""
    images = len(source.splits["train"])
    for one in fractions:
        if not 0 < one <= 1:
            raise UserError(f"--fractions has {one:g}; each must be above 0 and at most 1")
        if round(one * images) < len(source.classes):
            raise UserError(
                f"--fractions has {one:g}, which leaves {round(one * images)} of {images:,} images to train on, fewer "
                f"than the {len(source.classes)} classes; take a larger one"
            )
    return sorted({1.0, *fractions})


def _settle(out: Path, terms: Terms) -> None:
    """Write down what is compared in this folder. Raises UserError where it holds another comparison."""
    path, said = out / "settings.json", terms.as_json()
    text = json.dumps(said, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = " and ".join(_differing(before, said)[:3]) or "what is trained"
        raise UserError(f"{out} holds a comparison with another setting of {other}; choose another --out")
    checkpoint.write_file(path, text)


def _differing(one: Any, other: Any, name: str = "") -> list[str]:
    """The names of the settings in which two differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [f for key in {**one, **other} for f in _differing(one.get(key), other.get(key), f"{name}.{key}")]
    return [] if json.dumps(one) == json.dumps(other) else [name.removeprefix(".").removeprefix("recipe.")]


# ---------------------------------------------------------------------- training


def _train(plan: Plan, say: Say) -> None:
    wanted = list(plan.runs())
    for number, (one, seed, fraction) in enumerate(wanted, start=1):
        folder = plan.folder(one, seed, fraction)
        part = "" if fraction == 1 else f", {fraction:.0%} of the images"
        about = f"run {number} of {len(wanted)}: {one.label}, seed {seed}{part}"
        if (folder / "final.json").exists():
            say(f"{about}: finished before")
        else:
            say(f"{about}, {plan.epochs[one.label]} epochs")
        _finished(recipe_of(one, plan.terms, plan.epochs[one.label], seed, plan.limit(fraction)), folder)


def _finished(recipe: Recipe, folder: Path) -> None:
    """Train a run to its end, from where it stands."""
    if not (folder / "final.json").exists():
        if (folder / "recipe.json").exists():
            loop.resume(folder)
        else:
            loop.fit(recipe, folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # each is three times the model


def _is_timed(entrant: Entrant, terms: Terms) -> bool:
    return terms.budget == "time" and entrant.folder is None


def _pace(entrant: Entrant, terms: Terms, source: Source, out: Path, say: Say) -> float:
    """Seconds that an epoch of training takes, reading and augmenting included; measured once for each folder."""
    folder = out / "pace" / entrant.slug
    if not (folder / "final.json").exists():
        say(f"timing an epoch of {entrant.label}")
    images = len(source.splits["train"])
    batch = terms.recipe.data.batch_size
    _finished(recipe_of(entrant, terms, PACE_EPOCHS, 0, min(images, PACE_BATCHES * batch)), folder)
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return images / terms.recipe.data.repeats / float(last["images_per_s"])


# ---------------------------------------------------------------------- measuring


def _tell(plan: Plan, say: Say) -> Path:
    """Ask every run what has not been asked yet, and write the page."""
    recipe, source = plan.terms.recipe, plan.sources[0]
    split = source.splits[scored_split(source)]
    said: dict[float, dict[str, dict[int, standing.Answers]]] = {}
    for fraction in plan.fractions:
        said[fraction] = {one.label: {} for one in plan.entrants if plan.seeds_of(one, fraction)}
        for one in plan.entrants:
            for seed in plan.seeds_of(one, fraction):
                say(f"scoring {one.label}, seed {seed}" + ("" if fraction == 1 else f", {fraction:.0%} of the images"))
                subject = measure.subject(plan.folder(one, seed, fraction), plan.out)
                said[fraction][one.label][seed] = measure.answers(subject, plan.sources[seed], recipe, seed)
    first = {one.label: measure.subject(plan.folder(one, 0), plan.out) for one in plan.entrants}
    spent, robust, likeness = {}, {}, []
    for label, subject in first.items():
        say(f"counting and timing {label}")
        spent[label] = measure.costs(subject)
    for label, subject in first.items():
        say(f"making the images worse for {label}")
        robust[label] = measure.robust(subject, recipe, 0)
    labels = list(first)
    for k, label in enumerate(labels):
        for other in labels[k + 1 :]:
            say(f"comparing the blocks of {label} and {other}")
            found = measure.likeness(first[label], first[other], split, plan.out)
            likeness.append({"one": label, "other": other, **found})
    result = numbers(plan, Found(said, spent, robust, likeness))
    indices = [image["index"] for image in result["disagreement"]["images"]]
    say(f"looking at {len(indices)} images on which they disagree")
    maps = {label: measure.looks(subject, split, indices) for label, subject in first.items()}
    return write_page(result, maps, plan.out)
