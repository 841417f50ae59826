"""How good a model is on held-out images: accuracy, per-class scores, confusion, the most confident mistakes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.loader import Loader
from vitrail.data.sources import Source
from vitrail.errors import UserError, did_you_mean
from vitrail.run import Run, best_device, load, open_data, preprocessing


@dataclass(frozen=True)
class Scored:
    """What a model says of every readable image of a split. N images, K classes."""

    logits: Tensor
    """(N, K) float32."""
    labels: Tensor
    """(N,) long."""
    index: Tensor
    """(N,) long: which image of the split."""
    damaged: list[str]
    """Names of the images that could not be read; they are in no denominator."""

    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(F.cross_entropy(self.logits, self.labels))

    def top(self, k: int) -> float:
        """Share of images whose label is among the k highest logits."""
        k = min(k, self.logits.shape[1])
        hits = (self.logits.topk(k).indices == self.labels[:, None]).any(dim=1)
        return float(hits.double().mean())


@torch.no_grad()
def score(model: nn.Module, loader: Loader, device: torch.device) -> Scored:
    """Run `model` over a loader in eval mode (its mode is restored). Raises UserError where no image can be read."""
    was_training = model.training
    model.eval()
    logits, labels, index, damaged = [], [], [], []
    for batch in loader.epoch(0):
        damaged += batch.damaged
        if len(batch.images):
            logits.append(model(batch.images.to(device)).float().cpu())
            labels.append(batch.labels)
            index.append(batch.index)
    model.train(was_training)
    if not logits:
        raise UserError(f"none of the {len(damaged)} images held out can be read; `vitrail doctor` says why")
    return Scored(torch.cat(logits), torch.cat(labels), torch.cat(index), damaged)


def evaluate(
    run: str | Path | Run,
    data: str | None = None,
    *,
    source: Source | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    pretrained: bool = False,
) -> dict[str, Any]:
    """Score a run (or a model's name) on the images held out of its own data, or on another source `data`.

    `split` is test where the source has one, else val, unless given. Returns plain numbers and lists: run, weights,
    data, split, n (images scored), damaged (names), top1, top5, loss, classes, per_class (precision, recall, f1, n),
    confusion (rows: true class), mistakes (the most confident wrong answers). Shares are fractions of n.
    Raises UserError where the source's classes are not the model's.
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
    _same_classes(source, run)
    loader = Loader(
        source.splits[split],
        preprocessing(recipe.data),
        batch_size=batch_size or recipe.data.batch_size,
        seed=0,
        shuffle=False,
        workers=recipe.data.workers if workers is None else workers,
        num_classes=len(run.classes),
    )
    device = best_device()
    scored = score(run.model.to(device), loader, device)
    head = {"run": str(run.folder or recipe.model), "weights": run.weights, "data": source.name, "split": split}
    return {**head, **_numbers(scored, run.classes, source.splits[split].name)}


def _same_classes(source: Source, run: Run) -> None:
    """The source's labels must mean what the model's outputs mean."""
    if source.multi_label:
        raise UserError(f"{source.name} has several labels an image; accuracy needs one")
    if len(source.classes) != len(run.classes):
        raise UserError(
            f"{source.name} has {len(source.classes)} classes and the model {len(run.classes)}; "
            f"score it on data with the classes it was trained for"
        )
    unknown = [name for name in source.classes if name not in run.classes]
    if run.folder is not None and unknown:
        near = did_you_mean(unknown[0], run.classes)
        raise UserError(f"the class '{unknown[0]}' of {source.name} is not one of the model's{near}")


def _numbers(scored: Scored, classes: list[str], name: Any) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = scored.labels.numpy()
    predicted = scored.logits.argmax(dim=1).numpy()
    every = np.arange(len(classes))
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    return {
        "n": len(labels),
        "damaged": scored.damaged,
        "top1": scored.top(1),
        "top5": scored.top(5),
        "loss": scored.loss(),
        "macro_f1": float(f1.mean()),
        "classes": classes,
        "per_class": [
            {"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "n": int(m)}
            for c, p, r, f, m in zip(classes, precision, recall, f1, n, strict=True)
        ],
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
        "mistakes": _mistakes(scored, classes, name, most=16),
    }


def _mistakes(scored: Scored, classes: list[str], name: Any, most: int) -> list[dict[str, Any]]:
    """The wrong answers given with the highest probability, first the most confident."""
    probability, predicted = scored.logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != scored.labels).nonzero()[:, 0]
    wrong = wrong[probability[wrong].argsort(descending=True)][:most]
    return [
        {
            "file": name(int(scored.index[i])),
            "index": int(scored.index[i]),
            "true": classes[int(scored.labels[i])],
            "predicted": classes[int(predicted[i])],
            "probability": float(probability[i]),
        }
        for i in wrong
    ]
