"""Who takes part in a comparison and what each is trained with: one recipe for all, cut to an equal budget.

epochs    every model sees the images equally often
flops     forward cost x images is that of the first model: its epochs times its cost, over the other's cost
time      the same minutes of training: epochs times the seconds that one takes, measured before

Epochs are whole, so the two last are equal up to rounding; what each really got stands on the page. The warm-up keeps
its share of the epochs. Everything is refused that cannot be trained, before anything is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vitrail.comparison import cost
from vitrail.data.read import ImageError
from vitrail.data.sources import Source, found_anywhere
from vitrail.errors import UserError
from vitrail.models import create_model, describe
from vitrail.recipe import Recipe, Schedule
from vitrail.recipes import find_recipe
from vitrail.run import Run, load, open_data
from vitrail.training.evaluate import outputs_of
from vitrail.training.features import scored_split

Budget = Literal["epochs", "time", "flops"]
SMALL = 96  # pixels a side: images that are all squares of one size up to this are not enlarged
LOOKED_AT = 32  # images that tell how large all are


@dataclass(frozen=True)
class Terms:
    """What is the same for all; written to settings.json."""

    recipe: Recipe
    """For the first seed and all images; its model is not meant."""
    budget: Budget
    minutes: float | None
    """Of training a model, where the budget is time."""
    first: str
    """The model whose cost is everyone's, where the budget is flops."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, equal for equal terms."""
        said = dataclasses.asdict(self)
        del said["recipe"]["model"]
        return said


@dataclass(frozen=True)
class Entrant:
    """A model to train, or a run that is there already."""

    label: str
    """What it is called on the page."""
    model: str
    folder: Path | None = None
    """Of a run that joins; None: it is trained here."""
    flops: int = 0
    """Multiply-adds of one image."""

    @property
    def slug(self) -> str:
        """The label as part of a folder's name."""
        return re.sub(r"[^\w.-]+", "-", self.label).strip("-.") or "model"


def agreed(
    data: str,
    models: Sequence[str],
    *,
    recipe: str | None,
    epochs: int | None,
    budget: Budget,
    minutes: float | None,
    img_size: int | None,
    limit: int | None,
) -> Terms:
    """The terms that are asked for. Raises UserError for an unknown recipe, or a budget that is not said."""
    if (budget == "time") != (minutes is not None):
        need = "needs --minutes, for each model" if minutes is None else "has no use for --minutes"
        raise UserError(f"--budget {budget} {need}")
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes is {minutes:g}; it must be above 0")
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs is {epochs}; it must be 1 or more")
    if epochs is not None and budget == "time":
        raise UserError("--budget time decides the epochs by itself; leave --epochs away")
    base = find_recipe(recipe or ("quickstart" if data == "digits" else "scratch"))
    base = replace(
        base,
        data=replace(base.data, source=found_anywhere(data), limit=limit, img_size=img_size or base.data.img_size),
        schedule=of_length(base.schedule, epochs or base.schedule.epochs),
    )
    return Terms(base, budget, minutes, models[0] if budget == "flops" and models else "")


def of_length(schedule: Schedule, epochs: int) -> Schedule:
    """The same schedule over other epochs: what is counted in epochs keeps its share of them."""
    share = epochs / schedule.epochs
    return replace(
        schedule,
        epochs=epochs,
        warmup_epochs=schedule.warmup_epochs * share,
        timescale_epochs=schedule.timescale_epochs * share,
        cooldown_epochs=schedule.cooldown_epochs * share,
        frozen_epochs=int(schedule.frozen_epochs * share),
    )


def image_side(source: Source) -> int | None:
    """The side of the images where they are small squares of one size, as far as a few of them tell; else None."""
    split = source.splits["train"]
    sides: set[tuple[int, ...]] = set()
    for i in range(0, len(split), max(1, len(split) // LOOKED_AT)):
        try:
            sides.add(tuple(split.read(i).shape[1:]))
        except (ImageError, OSError):
            continue  # training names it
    height, width = next(iter(sides)) if len(sides) == 1 else (0, 1)
    return height if height == width and height <= SMALL else None


def to_train(models: Sequence[str], source: Source, terms: Terms) -> list[Entrant]:
    """The models, each built once without weights. Raises UserError for the first that these images do not suit."""
    found = []
    for name in models:
        if models.count(name) > 1:
            raise UserError(f"{name} is named twice in --models; more --seeds train it again")
        label = name.rpartition(":")[2]
        same = sum(other.rpartition(":")[2] == label for other in models) > 1
        found.append(Entrant(name if same else label, name, flops=_flops(name, source, terms.recipe)))
    return found


def _flops(name: str, source: Source, recipe: Recipe) -> int:
    describe(name)  # refuses an unknown name in its own words
    channels, size = recipe.data.in_chans or source.in_chans, recipe.data.img_size
    try:
        with torch.device("meta"):
            model: Any = create_model(name, num_classes=len(source.classes), in_chans=channels, img_size=size)
        return cost.flops(model, model.config.img_size, channels)
    except (UserError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        images = "its own image size" if size is None else f"images of {size} px"
        raise UserError(
            f"{name} cannot be built for {images} ({reason}); give all models another size with --img-size, or leave "
            f"{name} out"
        ) from error


def joining(runs: Sequence[str | Path], source: Source, terms: Terms, taken: Sequence[str]) -> list[Entrant]:
    """Runs that are there already. Raises UserError where one has other classes or was trained on the scored images."""
    found: list[Entrant] = []
    for name in runs:
        run = load(Path(name))
        assert run.folder is not None, "a path is a folder or refused"
        if run.recipe.task != "classify":
            raise UserError(f"{name} was trained for {run.recipe.task} and names no class; fine-tune it first")
        outputs_of(run, source, what=f"run {name}", use="compare it")
        _unseen(run, str(name), source, terms)
        label = run.folder.resolve().name
        label = str(name) if label in [*taken, *(one.label for one in found)] else label
        size, channels = run.recipe.data.img_size, run.recipe.data.in_chans
        assert size, "the recipe of a run folder is resolved"
        assert channels, "the recipe of a run folder is resolved"
        flops = cost.flops(run.model, size, channels)
        found.append(Entrant(label, run.recipe.model, run.folder.resolve(), flops))
    return found


def _unseen(run: Run, name: str, source: Source, terms: Terms) -> None:
    """Raises UserError where a run has learned images that are scored: data without a split of their own are split by
    each run's seed."""
    if run.recipe.data.source != terms.recipe.data.source:
        return
    train = open_data(run.recipe).splits["train"]
    scored = source.splits[scored_split(source)]
    known = {train.name(i) for i in range(len(train))} & {scored.name(i) for i in range(len(scored))}
    if known:
        raise UserError(
            f"{name} was trained on {len(known):,} of the {len(scored):,} images that are scored here, as its seed or "
            f"split is another; give data with a test split of its own, or train it here as one of --models"
        )


def epochs_of(entrants: Sequence[Entrant], terms: Terms, seconds: Mapping[str, float]) -> dict[str, int]:
    """How many epochs each entrant is trained. `seconds` an epoch, measured, are read where the budget is time.

    Raises UserError where the minutes do not suffice for one epoch.
    """
    epochs, trained = terms.recipe.schedule.epochs, [one for one in entrants if one.folder is None]
    if terms.budget == "epochs":
        return {one.label: epochs for one in trained}
    if terms.budget == "flops":
        first = next(one for one in trained if one.model == terms.first)
        return {one.label: max(1, round(epochs * first.flops / max(one.flops, 1))) for one in trained}
    minutes = terms.minutes or 0.0
    for one in trained:
        if 60 * minutes < seconds[one.label]:
            raise UserError(
                f"an epoch of {one.label} takes {seconds[one.label] / 60:.2g} minutes here, more than the {minutes:g} "
                f"of --minutes; allow more, or fewer images with --limit"
            )
    return {one.label: int(60 * minutes / seconds[one.label]) for one in trained}


def recipe_of(entrant: Entrant, terms: Terms, epochs: int, seed: int, limit: int | None) -> Recipe:
    """What an entrant is trained with."""
    recipe = terms.recipe
    return replace(
        recipe,
        model=entrant.model,
        seed=seed,
        schedule=of_length(recipe.schedule, epochs),
        data=replace(recipe.data, limit=recipe.data.limit if limit is None else limit),
    )
