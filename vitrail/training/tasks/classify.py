"""Classification with cross-entropy against labels, mixed labels or smoothed labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.mix import mix
from vitrail.recipe import Recipe


class Classify:
    """Soft-target cross-entropy; MixUp and CutMix on the whole batch, smoothing once, inside the mixing."""

    def __init__(self, recipe: Recipe, num_classes: int):
        self.augment = recipe.augment
        self.smoothing = recipe.label_smoothing
        self.num_classes = num_classes

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S), (B,) -> mixed images, targets (B, K)."""
        return mix(
            images,
            labels,
            num_classes=self.num_classes,
            mixup=self.augment.mixup,
            cutmix=self.augment.cutmix,
            smoothing=self.smoothing,
        )

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the batch, in float32."""
        return F.cross_entropy(model(images).float(), targets)
