"""What a model costs: parameters, multiply-adds of one image, images a second on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Numbers that training changes; those shared by two modules count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, img_size: int, in_chans: int = 3) -> int:
    """Multiply-adds of one image (in_chans, img_size, img_size): what papers print as FLOPs.

    Counted on the meta device, so nothing is computed: matrix products, convolutions and attention. Norms, activations
    and additions are left out, as papers do.
    """
    shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, in_chans, img_size, img_size, device="meta"))
    return counter.get_total_flops() // 2


def images_per_second(model: nn.Module, images_shape: Sequence[int], *, seconds: float = 0.5) -> float:
    """Inference speed on batches of `images_shape` (B, C, H, W), where and in the precision that the model is.

    Measured for at least `seconds` after two passes of warm-up, in eval mode; the model is left as it was.
    """
    first = next(model.parameters())
    images = torch.zeros(*images_shape, device=first.device, dtype=first.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            _passes(model, images, 0.0)
            _passes(model, images, 0.0)
            passes, elapsed = _passes(model, images, seconds)
    finally:
        model.train(was_training)
    return passes * len(images) / elapsed


def _passes(model: nn.Module, images: torch.Tensor, seconds: float) -> tuple[int, float]:
    """Forward passes until `seconds` are over, at least one, and the time they took."""
    start, count = time.perf_counter(), 0
    while True:
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        count, elapsed = count + 1, time.perf_counter() - start
        if elapsed >= seconds:
            return count, elapsed
