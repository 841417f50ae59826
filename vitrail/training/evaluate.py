"""How good a run is on held-out images: by its classes, or by its task where it has learned no classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail import engines
from vitrail.data.loader import Loader
from vitrail.data.sources import Source
from vitrail.engines.examples import examples_of_source
from vitrail.errors import UserError, did_you_mean
from vitrail.run import Run, best_device, load, open_data, preprocessing
from vitrail.training.distributed import gathered, rank, world
from vitrail.training.metrics import Scored, one_label, several_labels


@torch.no_grad()
def score(model: nn.Module, loader: Loader, device: torch.device) -> Scored:
    """Run `model` over a loader in eval mode (its mode is restored); the rows are in the order of the split.

    Every process scores its share and gets all rows. Raises UserError where no image can be read.
    """
    was_training = model.training
    model.eval()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    damaged: list[str] = []
    for batch in loader.epoch(0):
        damaged += batch.damaged
        if len(batch.images):
            rows.append((model(batch.images.to(device)).float().cpu(), batch.labels, batch.index))
        elif world() > 1:  # where weights are shared out, all processes must take part
            model(no_image(model).to(device))
    model.train(was_training)
    shares = gathered((rows, damaged))
    rows, damaged = [row for share in shares for row in share[0]], [name for share in shares for name in share[1]]
    if not rows:
        raise UserError(f"none of the {len(damaged)} images held out can be read; `vitrail doctor` says why")
    logits, labels, index = (torch.cat(column) for column in zip(*rows, strict=True))
    order = index.argsort()
    return Scored(logits[order], labels[order], index[order], damaged)


def no_image(model: Any) -> Tensor:
    """(1, C, S, S): what a process shows a model of which it has a part, when it has no image and others have."""
    return torch.zeros(1, model.config.in_chans, model.config.img_size, model.config.img_size)


def evaluate(
    run: str | Path | Run,
    data: str | None = None,
    *,
    source: Source | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    pretrained: bool = False,
    optimize: engines.Precision | None = None,
) -> dict[str, Any]:
    """Score a run (or a model's name) on the images held out of its own data, or on another source `data`.

    `split` is test where the source has one, else val, unless given. Returns plain numbers and lists: run, weights,
    data, split, n (images scored), damaged (names), loss, metric (the key of the number to look at), and

    one label an image   top1, top5, balanced_accuracy, macro_f1, auroc, calibration_error, classes, per_class
                         (precision, recall, f1, n), confusion (rows: true class), mistakes (the most confident ones)
    several              map, macro_f1, micro_f1, classes, per_class (average_precision too), mistakes (by loss)
    masked patches       patch_accuracy or patch_r2, baseline, patches, target

    Shares are fractions of n. `optimize` lets the fastest engine of this machine compute, no coarser than that
    precision (it is chosen by images of the training split), and adds engine, a sentence. Raises UserError where the
    source's classes are not the model's.
    """
    run = load(run, pretrained=pretrained)
    recipe = run.recipe
    if source is None:
        name = data or recipe.data.source
        if not name:
            raise UserError(f"{run.recipe.model} is a model, not a run: name the DATA to score it on")
        source = open_data(replace(recipe, data=replace(recipe.data, source=name)))
    split = split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise UserError(f"{source.name} has no split '{split}'; it has {', '.join(source.splits)}")
    batch_size = batch_size or recipe.data.batch_size
    engine: dict[str, str] = {}
    if optimize:
        run, engine = optimized(run, examples_of_source(run, source, split), optimize, batch_size)
    loader = Loader(
        source.splits[split],
        preprocessing(recipe.data),
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        workers=recipe.data.workers if workers is None else workers,
        num_classes=len(source.classes),
        rank=rank(),
        world=world(),
        device=best_device(),
    )
    head = {"run": str(run.folder or recipe.model), "weights": run.weights, "data": source.name, "split": split}
    return head | engine | numbers(run, source, loader, split)


def optimized(run: Run, examples: Tensor, precision: engines.Precision, batch_size: int) -> tuple[Run, dict[str, str]]:
    """The run with its model as the fastest engine runs it, and why. Raises UserError where it has no classes."""
    if run.recipe.task == "masked_patches":
        raise UserError(f"{run.folder} has learned to predict masked patches; only models of classes can be optimized")
    model = engines.optimize(run.model.to(best_device()), examples, precision, batch_size=batch_size)
    return run._replace(model=model), {"engine": model.why}


def numbers(run: Run, source: Source, loader: Loader, split: str) -> dict[str, Any]:
    """What `evaluate` finds on the images of a split, through a loader of them."""
    from vitrail.training.tasks.masked_patches import MaskedPatches, restored  # the tasks need this file

    device, recipe = best_device(), run.recipe
    if recipe.task == "masked_patches":
        task = MaskedPatches(recipe, source)
        return task.score(restored(run, task).to(device), loader, device) | {"metric": task.metric}
    order = outputs_of(run, source)
    scored = score(run.model.to(device), loader, device)
    scored = replace(scored, logits=scored.logits[:, order])
    if recipe.task == "multilabel":
        return several_labels(scored, source.classes, source.splits[split].name)
    return one_label(scored, source.classes, source.splits[split].name, recipe.loss == "bce")


def outputs_of(run: Run, source: Source, what: str = "model", use: str = "score it") -> list[int]:
    """For each class of the source the number of the model's output that means it.

    Raises UserError where there is none, or where one gives several labels an image and the other one; the message says
    `what` the model is and what it should be `use`d for.
    """
    if source.multi_label and run.recipe.task != "multilabel":
        raise UserError(f"{source.name} has several labels an image and the {what} gives one; {use} on data with one")
    if len(source.classes) != len(run.classes):
        raise UserError(
            f"{source.name} has {len(source.classes)} classes and the {what} {len(run.classes)}; "
            f"{use} on data with the classes it was trained for"
        )
    if run.folder is None:
        return list(range(len(run.classes)))
    unknown = [name for name in source.classes if name not in run.classes]
    if unknown:
        near = did_you_mean(unknown[0], run.classes)
        raise UserError(f"the class '{unknown[0]}' of {source.name} is not one of the {what}'s{near}")
    return [run.classes.index(name) for name in source.classes]
