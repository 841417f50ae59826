"""A recipe and its data -> the recipe with nothing left open, which is what a run folder keeps."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitrail.data.augment import adapt_channels
from vitrail.data.sources import Source, found_anywhere
from vitrail.errors import UserError
from vitrail.models import describe
from vitrail.recipe import Recipe
from vitrail.run import build, normalisation
from vitrail.training.schedule import scaled_for_batch

logger = logging.getLogger("vitrail")


def resolve(recipe: Recipe, source: Source) -> Recipe:
    """Task, paths, image size, channels, mean and std, and the learning rate for the batch size, all decided.

    Raises UserError where recipe and data do not fit, before anything is written.
    """
    model = recipe.model
    if ":" in model:  # a file of one's own is found again from any folder
        path, _, name = model.rpartition(":")
        model = f"{Path(path).resolve()}:{name}"
    recipe = _without_what_is_missing(replace(recipe, model=model, task=_task(recipe, source)))
    in_chans = recipe.data.in_chans or source.in_chans
    adapt_channels(torch.empty(source.in_chans, 1, 1), in_chans)  # refuses what no image can be turned into
    mean, std = normalisation(recipe, in_chans)
    with torch.device("meta"):  # names a wrong model or size
        built: Any = build(replace(recipe, pretrained=False, initial_checkpoint=""), len(source.classes)).config
    data = replace(
        recipe.data,
        source=found_anywhere(recipe.data.source),
        img_size=built.img_size,
        in_chans=in_chans,
        mean=mean,
        std=std,
    )
    teacher = recipe.distill.teacher
    if teacher and Path(teacher).is_dir():
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=str(Path(teacher).absolute())))
    weights = recipe.initial_checkpoint
    if weights and Path(weights).exists():
        recipe = replace(recipe, initial_checkpoint=str(Path(weights).absolute()))
    scaled = scaled_for_batch(replace(recipe, data=data))
    if scaled.optim.lr != recipe.optim.lr:
        source.notes.append(
            f"learning rate {recipe.optim.lr:g} for batches of {recipe.optim.lr_batch}, so {scaled.optim.lr:g} for "
            f"{data.batch_size}"
        )
    return scaled


def _task(recipe: Recipe, source: Source) -> Any:
    if recipe.task == "multilabel" and not source.multi_label:
        raise UserError(f"{recipe.data.source} has one label an image; leave --task away, or give a .csv with several")
    return "multilabel" if source.multi_label and recipe.task == "classify" else recipe.task


def _without_what_is_missing(recipe: Recipe) -> Recipe:
    """What drops depth, patches or units is left out where the architecture has no place for it, and that is said."""
    config = describe(recipe.model)["config"]
    if recipe.drop_path and "drop_path_rate" not in config:
        logger.warning("%s has no stochastic depth: drop_path %g is left out", recipe.model, recipe.drop_path)
        recipe = replace(recipe, drop_path=0.0)
    if recipe.patch_drop and "patch_drop_rate" not in config:
        logger.warning("%s needs all its patches: patch_drop %g is left out", recipe.model, recipe.patch_drop)
        recipe = replace(recipe, patch_drop=0.0)
    if recipe.dropout and "drop_rate" not in config:
        logger.warning("%s has no dropout: dropout %g is left out", recipe.model, recipe.dropout)
        recipe = replace(recipe, dropout=0.0)
    return recipe
