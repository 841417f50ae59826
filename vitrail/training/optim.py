"""Optimiser, learning rate and moving average: pure rules of the recipe and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitrail.recipe import Optim, Recipe, Schedule


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights decay; norms, biases and scales (one dimension), tokens and positions do not."""
    tokens = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kept = [parameter for name, parameter in named if parameter.ndim <= 1 or name in tokens]
    decayed = [parameter for name, parameter in named if not (parameter.ndim <= 1 or name in tokens)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9. SGD's weight decay is coupled, as everywhere in PyTorch."""
    groups = parameter_groups(model, optim.weight_decay)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9, nesterov=True, fused=True)


def scaled_for_batch(recipe: Recipe) -> Recipe:
    """The linear rule (Goyal et al., 2017): lr grows with the batch size. Applied once; lr_batch is then None."""
    optim = recipe.optim
    if optim.lr_batch is None:
        return recipe
    lr = optim.lr * recipe.data.batch_size / optim.lr_batch
    return replace(recipe, optim=replace(optim, lr=lr, lr_batch=None))


def learning_rate(step: int, steps_per_epoch: int, peak: float, schedule: Schedule) -> float:
    """Of update `step`, from 0: linear from 0 to `peak` over the warm-up, then a half cosine to min_lr * peak."""
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (math.floor(warmup) + 1)
    total = schedule.epochs * steps_per_epoch
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (schedule.min_lr + (1 - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers. Early on it forgets faster, (1 + t) / (10 + t), so that a
    short run is not an average over its random start."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        t = float(count)
        weight = 1 - min(decay, (1 + t) / (10 + t))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), weight)
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
