"""Linear probes by layer: how early a network's features tell the classes apart. Do Vision Transformers See Like
Convolutional Neural Networks? Raghu et al., NeurIPS 2021, arXiv 2108.08810, figures 11 and 13.

Idea      least squares from few images of each class, in closed form, on what every block hands on: the mean of its
          places, and its class token. Against normalised depth, so that networks of any length compare.
Caution   no norm of the model is applied, of the last block neither: each feature is standardised by its own mean and
          deviation over the images fitted on. The penalty is fixed, so that the scored images decide nothing.
Cost      one forward pass for all blocks, of the images that are drawn and of those scored. Their features wait on the
          CPU: of 10 shots of 10 classes, 3 draws, and 2,000 images scored in the 12 blocks of a ViT-B 2,300 x 12 x 2 x
          768 floats, 170 MB; of 1,000 classes 2.4 GB.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.data.limit import limited
from vitrail.data.sources import Part
from vitrail.errors import UserError
from vitrail.interpretability.stream import Flow, tapped, trunk
from vitrail.run import Run, best_device, load
from vitrail.training.evaluate import score
from vitrail.training.features import images_of, said, scored_split, source_of
from vitrail.training.metrics import Scored
from vitrail.training.probe import draw, least_squares


class LayerProbes(NamedTuple):
    """Accuracy of a linear probe on each of L blocks: shares of the held-out images that it gets right."""

    run: str
    weights: str
    data: str
    split: str
    """What was scored: test, or val where there is no test."""
    layers: list[str]
    depth: NDArray[np.float64]
    """(L,) from 1 / L at the first block to 1 at the last."""
    places: NDArray[np.float64]
    """(L, seeds) on the mean of the places."""
    cls: NDArray[np.float64]
    """(L, seeds) on the first prefix token; nan where a block has none."""
    chance: float
    """The share of the most frequent class among the scored images."""
    shots: int
    fewer: list[str]
    """Classes with fewer readable images to fit on than `shots`; each gives all it has."""
    n: int
    n_train: int
    """Images scored, and images drawn in any draw."""
    damaged: list[str]
    """Names of images that could not be read; they are left out."""


def layer_probes(
    run: str | Path | Run,
    data: str | None = None,
    *,
    shots: int = 10,
    seeds: int = 3,
    most: int = 2000,
    pretrained: bool = False,
    batch_size: int | None = None,
) -> LayerProbes:
    """Probe every block of `run` (a run folder, or a model's name) on the images `data`, or on its own: fit on `shots`
    training images of each class, `seeds` draws of them, and score on `most` held-out ones, or all there are.

    The draws are those of the few-shot probe of the last layer. The model stays as it is; `data` may have other classes
    than it. Raises UserError where `shots`, `seeds` or `most` is below 1, without data, for images with several labels,
    and where none can be read.
    """
    for name, value in (("shots", shots), ("seeds", seeds), ("most", most)):
        if value < 1:
            raise UserError(f"layer_probes: {name} is {value}; give 1 or more")
    run = load(run, pretrained=pretrained)
    source = source_of(run, data)
    split, count = scored_split(source), len(source.classes)
    draws = [draw(np.asarray(source.splits["train"].labels), count, shots, seed) for seed in range(seeds)]
    drawn = np.unique(np.concatenate(draws))
    held_out = limited(replace(source, splits={split: source.splits[split]}), most, seed=0).splits[split]
    streams, device = _Streams(run.model), best_device()
    streams.to(device).eval()  # `score` gives back the mode that it found
    train, held = (
        score(streams, images_of(run, part, count, batch_size), device)
        for part in (Part(source.splits["train"], drawn.tolist()), held_out)
    )
    readable = drawn[train.index.numpy()]  # in the numbers of the split, as the draws are
    draws = [np.flatnonzero(np.isin(readable, one)) for one in draws]
    accuracy = np.array([_accuracies(train, held, part, draws, count) for part in streams.parts()])
    least = np.min([np.bincount(train.labels[index], minlength=count) for index in draws], axis=0)
    return LayerProbes(
        run=said(run),
        weights=run.weights,
        data=source.name,
        split=split,
        layers=streams.names,
        depth=np.arange(1, len(streams.names) + 1) / len(streams.names),
        places=accuracy[0::2],
        cls=accuracy[1::2],
        chance=float(held.labels.bincount().max()) / len(held.labels),
        shots=shots,
        fewer=[source.classes[k] for k in np.flatnonzero(least < shots)],
        n=len(held.labels),
        n_train=len(train.labels),
        damaged=train.damaged + held.damaged,
    )


def _accuracies(train: Scored, held: Scored, part: slice, draws: list[Any], num_classes: int) -> list[float]:
    """Of each draw the share of held-out images that a probe on the columns `part` gets right; nan without columns."""
    x, asked = train.logits[:, part].double(), held.logits[:, part].double()
    if not x.shape[1]:
        return [np.nan] * len(draws)
    probes = (least_squares(x[index], train.labels[index], num_classes) for index in draws)
    return [float((probe(asked).argmax(dim=1) == held.labels).double().mean()) for probe in probes]


class _Streams(nn.Module):
    """A model without its head: images -> for each block the mean of its places and its class token, side by side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.names = trunk(model)
        self.widths: list[int] = []

    def parts(self) -> list[slice]:
        """The columns of what `forward` gave last: of each block the places', then the class token's, maybe none."""
        ends = list(accumulate(self.widths, initial=0))
        return [slice(start, end) for start, end in pairwise(ends)]

    def forward(self, images: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def look(_name: str, flow: Flow) -> None:
            kept.extend((flow.grid.mean((2, 3)), flow.prefix[:, :1].flatten(1)))

        with tapped(self.model, look):
            self.model(images)
        self.widths = [x.shape[1] for x in kept]
        return torch.cat(kept, dim=1)
