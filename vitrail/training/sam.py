"""Sharpness-aware minimisation (Foret et al., arXiv 2010.01412; for ViT and Mixer: Chen et al., arXiv 2106.01548).

The step is that of the gradient found a little uphill: the first pass gives g at w, `ascend` goes to w + rho g / ||g||,
the second pass gives the gradient there, and the optimiser applies it at w, which `restore` has put back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def ascend(parameters: Sequence[Tensor], rho: float) -> Callable[[], None]:
    """Move the weights by `rho` along their gradients, taken as one vector, and clear the gradients.

    Returns the function that puts the very bits of the weights back. Only the direction of the gradients counts, so
    those of fp16 may be scaled. Where their norm is 0, or not finite, the weights stay. Sharded weights (DTensor) have
    one norm together.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    kept = [parameter.detach().clone() for parameter in moved]
    norm = nn.utils.get_total_norm(gradients)
    length = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    if length > 0 and math.isfinite(length):
        torch._foreach_add_(moved, torch._foreach_div(gradients, length), alpha=rho)
    for parameter in moved:
        parameter.grad = None

    @torch.no_grad()
    def restore() -> None:
        for parameter, own in zip(moved, kept, strict=True):
            parameter.copy_(own)

    return restore


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm normalises with its batch as ever and remembers nothing of it: the second pass has the same
    images as the first, seen by other weights."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
