"""The learning rate: a pure function of the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import math
from dataclasses import replace

from vitrail.recipe import Recipe, Schedule


def learning_rate(step: int, steps_per_epoch: int, peak: float, schedule: Schedule) -> float:
    """Of update `step`, from 0: `peak` in the frozen epochs; then a linear warm-up from 0, then the recipe's decay.

    The first update of a warm-up of w steps has peak / (w + 1), so that no update has 0. The steps after the warm-up
    count from the first of them, which has the peak itself. Of rsqrt and constant the last cooldown_epochs fall
    linearly to the 0 that the step after the last one would have (Scaling ViT, and big_vision's `rsqrt`).
    """
    step -= schedule.frozen_epochs * steps_per_epoch
    if step < 0:
        return peak
    warmup = schedule.warmup_epochs * steps_per_epoch
    total = (schedule.epochs - schedule.frozen_epochs) * steps_per_epoch
    if step < warmup:
        peak *= (step + 1) / (math.floor(warmup) + 1)
    since = max(step - warmup, 0.0)
    if schedule.name in ("cosine", "linear"):
        progress = min(since / max(total - warmup, 1), 1.0)
        left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
        return peak * (schedule.min_lr + (1 - schedule.min_lr) * left)
    if schedule.name == "rsqrt":
        peak /= math.sqrt(1 + since / (schedule.timescale_epochs * steps_per_epoch))
    cooldown = schedule.cooldown_epochs * steps_per_epoch
    return peak * min(max(total - step, 0) / cooldown, 1.0) if cooldown else peak


def scaled_for_batch(recipe: Recipe) -> Recipe:
    """The linear rule (Goyal et al., 2017): lr grows with the batch size. Applied once; lr_batch is then None."""
    optim = recipe.optim
    if optim.lr_batch is None:
        return recipe
    lr = optim.lr * recipe.data.batch_size / optim.lr_batch
    return replace(recipe, optim=replace(optim, lr=lr, lr_batch=None))
