"""Train every arm of a study with every seed, ask each model about the same images, and see what comes of it.

OUT/data/*.npz                   the images, shared by all studies
OUT/runs/MODEL-DIGEST-SEED/      a run folder each, without the checkpoints once it is finished; the digest is of all
                                 that decides the run, so that studies share the runs that are the same
OUT/STUDY.json  .md  .png        the findings

A run that is finished is not repeated, one that was cut off goes on from its checkpoint, and more seeds can be added
later. What a model was asked lies beside it. Every model is scored as it is after its last epoch; none is chosen by its
score.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import vitrail
from vitrail import checkpoint
from vitrail.comparison import cost
from vitrail.comparison.studies import findings
from vitrail.comparison.studies.asking import right
from vitrail.comparison.studies.images import prepared
from vitrail.comparison.studies.study import Arm, Scale, Study, View
from vitrail.comparison.studies.verdict import contrasted, interval
from vitrail.errors import UserError, did_you_mean
from vitrail.models import create_model
from vitrail.recipe import Recipe, to_json
from vitrail.run import Run, best_device, load, open_data
from vitrail.training import loop

Say = Callable[[str], None]


class Place(NamedTuple):
    """Where and on what a study runs."""

    data: str
    scale: Scale
    out: Path

    def folder(self, arms: Sequence[Arm], arm: Arm, seed: int) -> Path:
        """The run folder of an arm and a seed."""
        name = arm.recipe.model.replace(":", "-").replace("/", "-")
        return self.out / "runs" / f"{name}-{self.digest(arms, arm)}-{seed}"

    def digest(self, arms: Sequence[Arm], arm: Arm) -> str:
        """Of all that decides an arm's runs but the seed; the same for arms of other studies that are the same."""
        by_name = {one.name: one for one in arms}
        before = [self.digest(arms, by_name[name]) if name else "" for name in (arm.starts_from, arm.teacher)]
        same = self.data, self.scale.test_images, self.images(arm), arm.trained, *before
        return hashlib.sha256(f"{same} {to_json(arm.recipe)}".encode()).hexdigest()[:8]

    def images(self, arm: Arm) -> int:
        """How many images an arm learns from."""
        return self.scale.images if arm.images is None else arm.images


def try_out(
    study: Study, *, data: str, scale: str, seeds: int, out: Path, say: Say = lambda _: None
) -> findings.Findings:
    """Run a study on `data` at one of its scales, with seeds 0 to `seeds` - 1, into the folder `out`.

    `say` is told each run before it begins. Returns the findings, which then also lie in `out`. Raises UserError for
    an unknown scale, fewer than two seeds, or data that cannot be trained on.
    """
    if scale not in study.scales:
        raise UserError(f"no scale '{scale}'{did_you_mean(scale, study.scales)}; there are {', '.join(study.scales)}")
    if seeds < 2:
        raise UserError(f"{seeds} is too few for --seeds: a difference has an interval from two seeds on, better three")
    place = Place(data, study.scales[scale], out.resolve())  # recipes name other runs, and are resumed from anywhere
    arms = study.arms(place.scale)
    folders = {(arm.name, seed): place.folder(arms, arm, seed) for arm in arms for seed in range(seeds)}
    for seed in range(seeds):
        for number, arm in enumerate(arms):
            say(f"{study.name}: seed {seed + 1} of {seeds}, arm {number + 1} of {len(arms)}: {arm.about}")
            if arm.trained:
                _train(arms, arm, seed, place)
    asked = _ask(study, arms, folders, seeds)
    finals = {arm.name: [_final(folders[arm.name, seed]) for seed in range(seeds)] for arm in arms if arm.trained}
    found = findings.Findings(
        study=study.name,
        about=study.about,
        setting=_setting(place, seeds, next(iter(finals.values()), [{"n": 0}])[0]),
        arms=_rows([arm for arm in arms if arm.trained], asked, finals, folders),
        contrasts=[
            findings.ContrastFound(
                one.says, one.decides, interval(contrasted(asked, one.weights)), one.margin, one.unit
            )
            for one in study.contrasts
        ],
        views=_views(study, asked),
        drawn=study.draw is not None,
    )
    shown = findings.Shown(arms, asked, lambda arm, seed: _opened(folders[arm, seed], arms, arm))
    findings.write(found, place.out, study.draw(shown) if study.draw else None)
    return found


def _train(arms: Sequence[Arm], arm: Arm, seed: int, place: Place) -> None:
    """See that the run of an arm and a seed is finished: as it lies there, gone on with, or trained now."""
    folder = place.folder(arms, arm, seed)
    if not (folder / "final.json").exists():
        if (folder / "recipe.json").exists():
            loop.resume(folder)
        else:
            scale = place.scale
            source = prepared(
                place.data,
                place.out / "data",
                images=place.images(arm),
                test_images=scale.test_images,
                side=scale.img_size,
                seed=seed,
            )
            loop.fit(filled_in(arms, arm, seed, source, place), folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # dozens of runs, each with twice its optimiser


def filled_in(arms: Sequence[Arm], arm: Arm, seed: int, source: Path, place: Place) -> Recipe:
    """The recipe of an arm, with its seed, its images, and the weights and teacher that come from other arms."""
    recipe = replace(arm.recipe, seed=seed, data=replace(arm.recipe.data, source=str(source)))
    by_name = {one.name: one for one in arms}
    if arm.starts_from:
        start = place.folder(arms, by_name[arm.starts_from], seed) / "model.safetensors"
        recipe = replace(recipe, initial_checkpoint=str(start))
    if arm.teacher:
        teacher = place.folder(arms, by_name[arm.teacher], seed)
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=str(teacher)))
    return recipe


# ------------------------------------------------------------------ what models are asked


RIGHT = View("accuracy", "points", lambda run, source: 100.0 * right(run, source))


def _ask(
    study: Study, arms: Sequence[Arm], folders: Mapping[tuple[str, int], Path], seeds: int
) -> dict[str, NDArray[np.float64]]:
    """(seeds, images) or (seeds, 1) by `ARM` and `ARM/VIEW`: every view of every arm that can be asked."""
    asked = {}
    for arm in arms:
        views = {"": RIGHT} if arm.trained and arm.recipe.task == "classify" else {}
        if arm.recipe.task == "classify":
            views |= study.views
        for name, view in views.items():
            file = f"{study.name}.{name}.npy" if name else "right.npy"
            rows = [_taken(view, folders[arm.name, seed] / file, arms, arm.name) for seed in range(seeds)]
            asked[f"{arm.name}/{name}" if name else arm.name] = np.stack(rows)
    return asked


def _taken(view: View, path: Path, arms: Sequence[Arm], name: str) -> NDArray[np.float64]:
    """What a view says of the model in the folder of `path`, asked now if it does not lie there."""
    if not path.exists():
        run = _opened(path.parent, arms, name)
        file = io.BytesIO()
        np.save(file, np.asarray(view.take(run, open_data(run.recipe) if run.folder else None), np.float64))
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_file(path, file.getvalue())
    values: NDArray[np.float64] = np.load(path)
    return values


def _opened(folder: Path, arms: Sequence[Arm], name: str) -> Run:
    """The trained model of an arm, or a fresh one where it needs no training."""
    arm = next(one for one in arms if one.name == name)
    return load(folder) if arm.trained else load(arm.recipe.model)


def _views(study: Study, asked: Mapping[str, NDArray[np.float64]]) -> list[findings.ViewFound]:
    found = []
    for key, values in asked.items():
        arm, _, name = key.partition("/")
        if name:
            view = study.views[name]
            means = [float(value) for value in values.mean(axis=1)]
            found.append(findings.ViewFound(arm, name, view.about, view.unit, means))
    return found


def _final(folder: Path) -> dict[str, Any]:
    final: dict[str, Any] = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    return final


# ------------------------------------------------------------------ what is told of an arm


def _setting(place: Place, seeds: int, final: dict[str, Any]) -> dict[str, Any]:
    """Where and how large, for the head of the findings."""
    device, data, scale = best_device().type, place.data, place.scale
    return {
        "data": Path(data).name if Path(data).expanduser().exists() else data,  # findings are shown to others
        "scale": scale.name,
        "seeds": seeds,
        "test_images": final["n"],
        "img_size": scale.img_size,
        "batch_size": scale.batch_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "vitrail": vitrail.__version__,
        "torch": torch.__version__,
    }


def _rows(
    arms: Sequence[Arm],
    asked: Mapping[str, NDArray[np.float64]],
    finals: Mapping[str, list[dict[str, Any]]],
    folders: Mapping[tuple[str, int], Path],
) -> list[findings.ArmFound]:
    """Arm by arm: what it was, what it cost, how it did. Cost is relative to the first arm that learns classes."""
    if not arms:
        return []
    images = {arm.name: _images(folders[arm.name, 0]) for arm in arms}
    spent = training_cost(arms, images, len(finals[arms[0].name][0]["classes"]))
    unit = next(spent[arm.name] for arm in arms if arm.name in asked)
    found = []
    for arm in arms:
        final = finals[arm.name]
        metric = final[0].get("metric", "top1")
        scores = asked[arm.name].mean(axis=1) if arm.name in asked else [100 * one[metric] for one in final]
        found.append(
            findings.ArmFound(
                arm.name,
                arm.about,
                arm.recipe.model,
                images[arm.name],
                arm.recipe.schedule.epochs,
                spent[arm.name] / unit,
                metric,
                [float(value) for value in scores],
            )
        )
    return found


def _images(folder: Path) -> int:
    return len(open_data(load(folder).recipe).splits["train"])


def training_cost(arms: Sequence[Arm], images: Mapping[str, int], num_classes: int) -> dict[str, float]:
    """Multiply-adds of an arm's training, with that of the arm it starts from and what its teacher says.

    A step forwards costs one pass, backwards two; sharpness-aware steps do both twice; a teacher only looks. What it
    cost to train the teacher is not counted.
    """
    spent: dict[str, float] = {}
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        recipe = arm.recipe
        seen = recipe.schedule.epochs * images[arm.name] / recipe.data.repeats
        total = seen * 3 * _flops(recipe, num_classes) * (2 if recipe.optim.rho else 1)
        if arm.teacher:
            total += seen * _flops(by_name[arm.teacher].recipe, num_classes)
        spent[arm.name] = total + (spent[arm.starts_from] if arm.starts_from else 0.0)
    return spent


def _flops(recipe: Recipe, num_classes: int) -> int:
    size = recipe.data.img_size
    assert size, "the arms of a study say their image size"
    with torch.device("meta"):
        model = create_model(recipe.model, num_classes=num_classes, img_size=size)
    return cost.flops(model, size)
