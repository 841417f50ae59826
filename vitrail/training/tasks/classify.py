"""Learning the labels: one class an image, or a yes or no for every class where an image has several."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.loader import Batch, Loader
from vitrail.data.mix import mix
from vitrail.data.sources import Source
from vitrail.recipe import Recipe
from vitrail.training.evaluate import score
from vitrail.training.tasks.losses import binary_cross_entropy, class_weights, soft_cross_entropy

logger = logging.getLogger("vitrail")


class Classify:
    """MixUp and CutMix on the whole batch, smoothing once, inside the mixing; then cross-entropy or binary
    cross-entropy against the soft targets. Held-out images are scored with the same loss, without any of this."""

    def __init__(self, recipe: Recipe, source: Source):
        self.augment = recipe.augment
        self.smoothing = recipe.label_smoothing
        self.num_classes = len(source.classes)
        several = recipe.task == "multilabel"
        self.metric = "map" if several else "top1"
        self.binary = several or recipe.loss == "bce"
        self.weights = class_weights(recipe.class_weights, source)

    def module(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        if hasattr(model, "set_distilled_training"):
            logger.warning(
                "the distillation token of this model learns the labels too, for want of a --distill.teacher"
            )
        return model

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> mixed images (B, C, S, S), targets (B, K)."""
        return mix(
            batch.images,
            batch.labels,
            num_classes=self.num_classes,
            mixup=self.augment.mixup,
            cutmix=self.augment.cutmix,
            smoothing=self.smoothing,
            prob=self.augment.mix_prob,
        )

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        """Mean over the images of the loss of the recipe, in float32."""
        images, targets = parts
        return self.label_loss(module(images), targets)

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (B, K) -> scalar."""
        loss = binary_cross_entropy if self.binary else soft_cross_entropy
        return loss(logits.float(), targets, None if self.weights is None else self.weights.to(targets.device))

    def score(self, module: nn.Module, loader: Loader, device: torch.device) -> dict[str, Any]:
        """loss (without weights and smoothing), top1 or map, damaged."""
        scored = score(module, loader, device)
        value = scored.mean_average_precision() if self.metric == "map" else scored.top(1)
        return {"loss": scored.loss(self.binary), self.metric: value, "damaged": scored.damaged}
