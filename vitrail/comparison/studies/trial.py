"""Train every arm of a study with every seed, ask each model about the same images, and see what comes of it.

OUT/data/*.npz                   the images, shared by all studies
OUT/runs/STUDY/ARM-SEED/         a run folder each, without the checkpoints once it is finished
OUT/runs/STUDY/settings.json     what these runs are: a study is gone on with only as it was begun
OUT/STUDY.json  .md  .png        the findings

A run that is finished is not repeated, one that was cut off goes on from its checkpoint, and more seeds can be added
later. Every model is scored as it is after its last epoch; none is chosen by its score.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vitrail
from vitrail import checkpoint
from vitrail.comparison import cost
from vitrail.comparison.studies import findings
from vitrail.comparison.studies.images import prepared
from vitrail.comparison.studies.study import Arm, Scale, Study
from vitrail.comparison.studies.verdict import contrasted, interval
from vitrail.data.loader import Loader
from vitrail.errors import UserError, did_you_mean
from vitrail.models import create_model
from vitrail.recipe import Recipe
from vitrail.run import best_device, load, open_data, preprocessing
from vitrail.training import loop
from vitrail.training.evaluate import score

Say = Callable[[str], None]


def try_out(
    study: Study, *, data: str, scale: str, seeds: int, out: Path, say: Say = lambda _: None
) -> findings.Findings:
    """Run a study on `data` at one of its scales, with seeds 0 to `seeds` - 1, into the folder `out`.

    `say` is told each run before it begins. Returns the findings, which then also lie in `out`. Raises UserError for
    an unknown scale, fewer than two seeds, data that cannot be trained on, or an `out` with runs of other settings.
    """
    if scale not in study.scales:
        raise UserError(f"no scale '{scale}'{did_you_mean(scale, study.scales)}; there are {', '.join(study.scales)}")
    if seeds < 2:
        raise UserError(f"{seeds} is too few for --seeds: a difference has an interval from two seeds on, better three")
    size, out = study.scales[scale], out.resolve()  # recipes name other runs, and are resumed from anywhere
    arms = study.arms(size)
    _settle(out / "runs" / study.name, {"data": data, "scale": size, "arms": arms})
    folders: dict[tuple[str, int], Path] = {}
    for seed in range(seeds):
        for number, arm in enumerate(arms):
            say(f"{study.name}: seed {seed + 1} of {seeds}, arm {number + 1} of {len(arms)}: {arm.about}")
            folders[arm.name, seed] = _trained(study, arm, size, data, seed, out)
    every = range(seeds)
    finals = {arm.name: [_final(folders[arm.name, seed]) for seed in every] for arm in arms}
    right = {
        arm.name: np.stack([_right(folders[arm.name, seed]) for seed in every])
        for arm in arms
        if arm.recipe.task == "classify"
    }
    found = findings.Findings(
        study=study.name,
        about=study.about,
        setting=_setting(data, size, seeds, finals[arms[0].name][0]),
        arms=_rows(arms, right, finals, folders),
        contrasts=[
            findings.ContrastFound(one.says, one.decides, interval(contrasted(right, one.weights)))
            for one in study.contrasts
        ],
    )
    findings.write(found, out)
    return found


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what the runs of this folder are. Raises UserError where it holds others."""
    settings["scale"] = dataclasses.asdict(settings["scale"])
    settings["arms"] = [dataclasses.asdict(arm) for arm in settings["arms"]]
    text = json.dumps(settings, indent=1) + "\n"
    path = folder / "settings.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds runs of another scale, data or version of this study; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_file(path, text)


def _trained(study: Study, arm: Arm, scale: Scale, data: str, seed: int, out: Path) -> Path:
    """The finished run of an arm and a seed: as it lies there, gone on with, or trained now."""
    runs = out / "runs" / study.name
    folder = runs / f"{arm.name}-{seed}"
    if not (folder / "final.json").exists():
        if (folder / "recipe.json").exists():
            loop.resume(folder)
        else:
            images = scale.images if arm.images is None else arm.images
            source = prepared(
                data, out / "data", images=images, test_images=scale.test_images, side=scale.img_size, seed=seed
            )
            loop.fit(filled_in(arm, seed, source, runs), folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # dozens of runs, each with twice its optimiser
    return folder


def filled_in(arm: Arm, seed: int, source: Path, runs: Path) -> Recipe:
    """The recipe of an arm, with its seed, its images, and the weights and teacher that come from other arms."""
    recipe = replace(arm.recipe, seed=seed, data=replace(arm.recipe.data, source=str(source)))
    if arm.starts_from:
        recipe = replace(recipe, initial_checkpoint=str(runs / f"{arm.starts_from}-{seed}" / "model.safetensors"))
    if arm.teacher:
        teacher = str(runs / f"{arm.teacher}-{seed}")
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=teacher))
    return recipe


def _right(folder: Path) -> NDArray[np.bool_]:
    """Whether the model of a run names each test image rightly, (images,), kept beside it in right.npy."""
    path = folder / "right.npy"
    if not path.exists():
        run, device = load(folder), best_device()
        split = open_data(run.recipe).splits["test"]
        loader = Loader(
            split,
            preprocessing(run.recipe.data),
            batch_size=256,
            seed=0,
            shuffle=False,
            workers=0,
            num_classes=len(run.classes),
        )
        scored = score(run.model.to(device), loader, device)
        right = np.zeros(len(split), bool)
        right[scored.index.numpy()] = (scored.logits.argmax(dim=1) == scored.labels).numpy()
        file = io.BytesIO()
        np.save(file, right)
        checkpoint.write_file(path, file.getvalue())
    answers: NDArray[np.bool_] = np.load(path)
    return answers


def _final(folder: Path) -> dict[str, Any]:
    final: dict[str, Any] = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    return final


# ------------------------------------------------------------------ what is told of an arm


def _setting(data: str, scale: Scale, seeds: int, final: dict[str, Any]) -> dict[str, Any]:
    """Where and how large, for the head of the findings."""
    device = best_device().type
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
    right: Mapping[str, NDArray[np.bool_]],
    finals: Mapping[str, list[dict[str, Any]]],
    folders: Mapping[tuple[str, int], Path],
) -> list[findings.ArmFound]:
    """Arm by arm: what it was, what it cost, how it did. Cost is relative to the first arm of the contrasts."""
    images = {arm.name: _images(folders[arm.name, 0]) for arm in arms}
    spent = training_cost(arms, images, len(finals[arms[0].name][0]["classes"]))
    unit = spent[next(iter(right))]
    found = []
    for arm in arms:
        final = finals[arm.name]
        metric = final[0].get("metric", "top1")
        scores = right[arm.name].mean(axis=1) if arm.name in right else [one[metric] for one in final]
        found.append(
            findings.ArmFound(
                arm.name,
                arm.about,
                arm.recipe.model,
                images[arm.name],
                arm.recipe.schedule.epochs,
                spent[arm.name] / unit,
                metric,
                [100 * float(value) for value in scores],
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
