"""Adafactor as Scaling ViT changed it (Zhai et al., arXiv 2106.04560, section 3.4): a second moment of one row and one
column a matrix, a first moment in bfloat16, and no scaling by the size of the weights.

torch.optim.Adafactor is another optimiser: it scales by the weights' size, clips its update and has no momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

MOMENTUM, POWER, LARGEST_BETA2, EPS = 0.9, 0.8, 0.999, 1e-30
SMALLEST = 32
"""Factored where two sides are at least so long (big_vision; timm: 16)."""


class Adafactor(torch.optim.Optimizer):
    """State of a matrix (n, m): n + m numbers in float32 and n m in bfloat16, half the memory of the weights.

    The second moment forgets by beta2 = min(0.999, 1 - t^-0.8) at its step t, from 1, and needs no correction of bias;
    nor is the first moment's corrected. Weight decay is decoupled and scaled by lr, as AdamW's.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    state = self.state[weights]
                    if not state:
                        state.update(_start(weights.grad))
                    direction = _direction(weights.grad, state)
                    weights.mul_(1 - group["lr"] * group["weight_decay"])
                    weights.sub_(direction.mul_(group["lr"]))
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """torch loads every state in the precision of its weights; the first moment goes back to its own."""
        super().__setstate__(state)
        for values in self.state.values():
            values["momentum"] = values["momentum"].to(torch.bfloat16)


def _sides(gradient: Tensor) -> tuple[int, int] | None:
    """The second longest and the longest dimension, or None where the second moment is kept whole."""
    order = sorted(range(gradient.ndim), key=lambda side: gradient.shape[side])
    return (order[-2], order[-1]) if len(order) > 1 and gradient.shape[order[-2]] >= SMALLEST else None


def _start(gradient: Tensor) -> dict[str, Tensor]:
    state = {"step": torch.tensor(0.0), "momentum": torch.zeros_like(gradient, dtype=torch.bfloat16)}
    sides = _sides(gradient)
    if sides is None:
        return {**state, "square": torch.zeros_like(gradient)}
    means = {name: gradient.mean(side, keepdim=True) for name, side in zip(("column", "row"), sides, strict=True)}
    return {**state, **{name: torch.zeros_like(mean) for name, mean in means.items()}}


def _direction(gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The first moment of gradient / sqrt(second moment), both brought up to date; float32."""
    state["step"] += 1
    learns = 1 - min(LARGEST_BETA2, 1 - float(state["step"]) ** -POWER)
    square = gradient.square() + EPS
    if "square" in state:
        update = gradient * state["square"].lerp_(square, learns).rsqrt()
    else:
        shorter, longer = _sides(gradient) or (0, 1)
        row = state["row"].lerp_(square.mean(longer, keepdim=True), learns)
        column = state["column"].lerp_(square.mean(shorter, keepdim=True), learns)
        update = gradient * (row / row.mean(shorter, keepdim=True)).rsqrt() * column.rsqrt()
    momentum = state["momentum"].lerp_(update.to(torch.bfloat16), 1 - MOMENTUM)
    return momentum.to(gradient.dtype)
