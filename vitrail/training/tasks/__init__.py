"""What a model learns from a batch: (model, batch) -> loss. One file a task; `choose_task` finds a recipe's."""

from __future__ import annotations

from pathlib import Path

import torch

from vitrail.data.sources import Source
from vitrail.recipe import Recipe
from vitrail.training.tasks.classify import Classify
from vitrail.training.tasks.distill import Distilled
from vitrail.training.tasks.masked_patches import MaskedPatches
from vitrail.training.tasks.task import Task


def choose_task(recipe: Recipe, source: Source, device: torch.device, folder: Path) -> Task:
    """The task of a resolved recipe. `folder` is the run's, where a teacher's answers may be kept."""
    if recipe.task == "masked_patches":
        return MaskedPatches(recipe, source)
    if recipe.distill.teacher:
        return Distilled(recipe, source, device, folder)
    return Classify(recipe, source)
