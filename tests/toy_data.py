"""Sources in memory and resolved recipes for them: what a task needs, without a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vitrail.data.arrays import ArraySplit
from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Source
from vitrail.recipe import Augment, Data, Recipe
from vitrail.run import preprocessing

STILL = Augment(crop="none", flip=0.0)


def source(labels: list[Any], classes: list[str], *, side: int = 8, several: bool = False) -> Source:
    """As many noisy images as labels, the same to train and to score on."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
    splits = {name: ArraySplit(pixels, labels, name) for name in ("train", "val")}
    return Source("toy", classes, dict(splits), multi_label=several)


def three(images: int = 12) -> Source:
    """Classes a, b, c in turn."""
    return source([i % 3 for i in range(images)], ["a", "b", "c"])


def recipe(**changes: Any) -> Recipe:
    """A resolved recipe for 8 x 8 images without augmentation; `data__mean=(0.5,)` changes recipe.data.mean."""
    data = Data(img_size=8, in_chans=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), batch_size=4, workers=0)
    made = Recipe(model="vit_pico_patch2_8", data=data, augment=STILL)
    for path, value in changes.items():
        part, _, field = path.rpartition("__")
        made = replace(made, **({part: replace(getattr(made, part), **{field: value})} if part else {field: value}))
    return made


def loader(source: Source, recipe: Recipe, batch_size: int = 5) -> Loader:
    """The images of "val" in their order, as they are scored."""
    split, classes = source.splits["val"], len(source.classes)
    transform = preprocessing(recipe.data)
    return Loader(split, transform, batch_size=batch_size, seed=0, shuffle=False, workers=0, num_classes=classes)


def whole(source: Source, recipe: Recipe) -> Batch:
    """All of "val" as one batch."""
    return next(loader(source, recipe, len(source.splits["val"])).epoch(0))


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
