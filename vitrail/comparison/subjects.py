"""Who is inspected, and on which images: a model, the images held out as it sees them, and how many it can take.

Two models see the same images, each in its own size. How many at once, and how many in all where a measurement is slow,
follows from the model, not from the machine: the numbers are the same everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.comparison import cost
from vitrail.data.limit import limited
from vitrail.data.sources import Part, Source, Split
from vitrail.errors import UserError
from vitrail.interpretability.landscape import Batches, Loss
from vitrail.interpretability.stream import Flow, tapped
from vitrail.run import Run, best_device, open_data
from vitrail.training.evaluate import outputs_of, score
from vitrail.training.features import images_of, said, scored_split

MEMORY = 2**30  # bytes that a batch may take, roughly
WHOLE = 128  # images of a batch that are compared with each other
SLOW = 2e12  # multiply-adds that a slow measurement may take: half a minute on two cores


class Subject(NamedTuple):
    """A model and the images that it is shown."""

    label: str
    run: Run
    source: Source | None
    split: Split | None
    """The images drawn, all of them readable; None without data."""
    right: float | str
    """The share of them that the model names rightly, or why there is none."""
    flops: int
    """Multiply-adds of one image."""
    widest: int
    """Bytes of the largest map that a block hands on, of one image."""
    graph: int
    """Bytes of a graph of the whole model, roughly, of one image."""

    @property
    def total(self) -> int:
        """How many images there are."""
        return 0 if self.split is None else len(self.split)

    def batches(self, most: int, size: int) -> Iterator[Tensor]:
        """Up to `most` images as the model sees them, in batches of `size` and a last one of the rest."""
        assert self.split is not None, "asked for images without data"
        part, device = Part(self.split, range(min(most, self.total))), best_device()
        for batch in images_of(self.run, part, 1, size).epoch(0):
            yield batch.images.to(device)

    def at_once(self) -> int:
        """How many images a graph may hold."""
        return int(np.clip(MEMORY // self.graph, 1, 32))

    def whole(self) -> int:
        """The size of batches whose images are compared with each other: all alike, as large as can be."""
        most = int(np.clip(MEMORY // (4 * self.widest), 16, WHOLE))
        return self.total // max(1, round(self.total / most))

    def affordable(self, passes: int, least: int, most: int) -> int:
        """How many images may make so many passes each where a measurement is slow."""
        return min(int(np.clip(SLOW / (passes * max(self.flops, 1)), least, most)), self.total)

    def labelled(self, most: int) -> tuple[Loss, Batches]:
        """The model's loss, and images with their labels. Raises UserError where it has not learned these classes."""
        assert self.source is not None, "asked for labels without data"
        assert self.split is not None, "asked for labels without data"
        order = _outputs(self.run, self.source)
        images = list(self.batches(most, self.at_once()))
        labels = torch.tensor(self.split.labels[:most], device=images[0].device)

        def loss(logits: Tensor, of: Tensor) -> Tensor:
            return F.cross_entropy(logits[:, order], of)

        return loss, list(zip(images, labels.split([len(batch) for batch in images]), strict=True))


class Cast(NamedTuple):
    """The models that are asked, and what they are asked on."""

    subjects: list[Subject]
    data: str
    """The name of the images; empty without any."""
    split: str
    damaged: list[str]
    """Names of images that cannot be read."""


class Missing(NamedTuple):
    """Instead of a result."""

    why: str


class Story(NamedTuple):
    """All that a page tells."""

    cast: Cast
    found: Mapping[str, Sequence[Mapping[str, Any]]]
    """By analysis, of each model its parts: results, or Missing."""
    between: Mapping[str, Any]
    """By analysis, of both models together."""


def cast(runs: Sequence[Run], data: str | None, most: int, *, looking: bool = True) -> Cast:
    """`runs` with `most` held-out images of `data`, drawn evenly from the classes; without `data`, of the first run
    that has some. Nothing is read unless `looking`. Raises UserError for data that cannot be opened or read."""
    name = data or next((run.recipe.data.source for run in runs if run.recipe.data.source), "")
    labels = [run.recipe.model for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{k}: {run.folder.name if run.folder else run.recipe.model}" for k, run in enumerate(runs, start=1)]
    subjects = [_subject(label, _on(run, runs[0], name)) for label, run in zip(labels, runs, strict=True)]
    if not (name and looking):
        return Cast(subjects, "", "", [])
    source = open_data(subjects[0].run.recipe)
    split = scored_split(source)
    drawn = limited(source, most, seed=0).splits[split]
    damaged: list[str] = []
    for index, subject in enumerate(subjects):
        images = images_of(subject.run, drawn, len(source.classes), 2 * subject.at_once())
        scored = score(subject.run.model, images, best_device())
        if scored.damaged:  # both models then see those that can be read
            damaged, drawn = scored.damaged, Part(drawn, scored.index.tolist())
        right = _right(subject.run, source, scored.logits, scored.labels)
        subjects[index] = subject._replace(source=source, split=drawn, right=right)
    return Cast(subjects, source.name, split, damaged)


def _subject(label: str, run: Run) -> Subject:
    """The model, measured without images."""
    sizes: list[int] = []

    def measure(_name: str, flow: Flow) -> None:
        sizes.append(4 * (flow.grid[0].numel() + flow.prefix[0].numel()))

    side, channels = run.recipe.data.img_size or 1, run.recipe.data.in_chans or 3
    flops, device = cost.flops(run.model, side, channels), best_device()
    run.model.to(device)
    with torch.no_grad(), tapped(run.model, measure):
        run.model(torch.zeros(1, channels, side, side, device=device))
    # attention and MLP keep some twenty numbers for each that a block hands on
    return Subject(label, run, None, None, "it was shown no images", flops, max(sizes), 20 * sum(sizes))


def _on(run: Run, first: Run, source: str) -> Run:
    """The run with the images of `source`, held out as the first run holds them out; read in this process, for they are
    few."""
    theirs = first.recipe.data
    data = dataclasses.replace(
        run.recipe.data, source=source, limit=theirs.limit, val_fraction=theirs.val_fraction, workers=0
    )
    return run._replace(recipe=dataclasses.replace(run.recipe, seed=first.recipe.seed, data=data))


def _right(run: Run, source: Source, logits: Tensor, labels: Tensor) -> float | str:
    try:
        order = _outputs(run, source)
    except UserError as error:
        return str(error)
    return float((logits[:, order].argmax(dim=1) == labels).double().mean())


def _outputs(run: Run, source: Source) -> list[int]:
    """For each class of the images the number of the model's output. Raises UserError where it has not learned them."""
    if source.multi_label or run.recipe.task != "classify":
        learned = "several labels" if source.multi_label else run.recipe.task
        raise UserError(f"{said(run)} on {source.name} is a matter of {learned}; accuracy and loss here need one label")
    return outputs_of(run, source, use="score it, or take its loss,")
