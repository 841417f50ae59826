"""The images that an engine is calibrated and checked with: real ones, prepared as the run prepares them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vitrail.data.loader import Loader
from vitrail.data.read import ImageError, read_image
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.run import Run, preprocessing

EXAMPLES = 300
"""How many are enough: of them three may change their class, as those of an engine that keeps 97 % hardly do."""


def examples_of_files(run: Run, files: Iterable[str | Path]) -> Tensor:
    """The first of `files` that can be read: (N, C, S, S), N at most EXAMPLES. Raises UserError where none can."""
    transform = preprocessing(run.recipe.data)
    found: list[Tensor] = []
    for file in files:
        if len(found) == EXAMPLES:
            break
        try:
            found.append(transform(read_image(file)))
        except ImageError:
            continue
    if not found:
        raise UserError("none of the images can be read, so no engine can be chosen by them")
    return torch.stack(found)


def examples_of_source(run: Run, source: Source, split: str) -> Tensor:
    """Images drawn from those `source` trains on, else from `split`: (N, C, S, S), N at most EXAMPLES."""
    split = "train" if "train" in source.splits else split
    loader = Loader(
        source.splits[split],
        preprocessing(run.recipe.data),
        batch_size=EXAMPLES,
        seed=0,
        shuffle=True,
        workers=0,
        num_classes=len(source.classes),
    )
    batch = next(iter(loader.epoch(0)))
    if not len(batch.images):
        raise UserError(f"none of {len(batch.damaged)} images of {source.name} can be read; `vitrail doctor` says why")
    return batch.images
