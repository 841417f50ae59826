"""What a task owes the loop: something to train, batches made ready for it, a loss, and a score on held-out images."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitrail.data.loader import Batch, Loader


class Task(Protocol):
    """The loop calls `module` once, `prepare` for each batch and `loss` for each micro-batch of it."""

    metric: str
    """The key of `score` that people look at, higher is better: top1, map, patch_accuracy or patch_r2."""

    def module(self, model: nn.Module) -> nn.Module:
        """What is trained: the model itself, or a module that holds it as `.model` and adds what the task needs.

        Its forward is what DDP wraps and torch.compile compiles.
        """
        ...

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        """A batch whose images and labels are on the device -> images, targets and so on, each (B, ...), so that the
        loop can cut them into micro-batches. What is random comes from torch's global generator of the CPU."""
        ...

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        """Mean over the images of the parts, a float32 scalar: micro-batches and processes add up exactly."""
        ...

    def score(self, module: nn.Module, loader: Loader, device: torch.device) -> dict[str, Any]:
        """On held-out images, without augmentation: loss, the number that `metric` names, damaged (names)."""
        ...
