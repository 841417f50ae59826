"""The loss around a model. Visualizing the Loss Landscape of Neural Nets. Li, Xu, Taylor, Studer and Goldstein, NeurIPS
2018, arXiv 1712.09913. The way between two models: Goodfellow, Vinyals and Saxe, ICLR 2015, arXiv 1412.6544.

Idea      walk from the weights along two random directions and note the loss: a narrow bowl, a wide one, a rough one.
          Each filter of a direction is as long as the model's own, so that networks whose weights differ in scale,
          which normalisation layers forgive, are drawn at one scale.
Caution   a filter is a slice along the first dimension, so a row of a matrix, and all of a table (1, N, D); biases and
          norms stay (the authors' `biasbn`). How-do-vits-work (arXiv 2202.06709) takes columns and leaves positions
          out: another picture. Two of millions of directions are seen, and augmentation and weight decay are not.
Cost      steps ** 2 passes over the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from vitrail.errors import UserError
from vitrail.interpretability.still import evaluating

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), labels) -> the mean over the images of a batch."""
Progress = Callable[[int, int], None]
"""Told after each point: how many are done, of how many."""


class Landscape(NamedTuple):
    """The loss on a plane through the weights."""

    offsets: NDArray[np.float64]
    """(G,) steps along a direction, in norms of the model's own filters; the middle one is 0."""
    losses: NDArray[np.float64]
    """(G, G) at weights + offsets[i] first + offsets[j] second; infinite or nan where the loss is."""
    images: int
    """How many the loss is a mean over."""


class Interpolation(NamedTuple):
    """The loss on the straight way from one model to another."""

    positions: NDArray[np.float64]
    """(G,) from 0, the model, to 1, the other one."""
    losses: NDArray[np.float64]
    """(G,)"""
    barrier: float
    """How far the loss rises above the straight line between both ends' losses; 0 where it nowhere does."""


def loss_landscape(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    steps: int = 11,
    reach: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Landscape:
    """The loss on a grid of `steps` x `steps` points, up to `reach` times the weights away, along directions of `seed`.

    `batches` are images (B, C, H, W), normalised, with what `loss` takes as labels, on the model's device; each point
    sees all of them. Eval mode, float32 or better. The model's weights are never written to. Raises UserError for an
    even number of steps, which would miss the model itself, and for no images.
    """
    if steps < 3 or steps % 2 == 0:
        raise UserError(f"loss_landscape: steps is {steps}; give an odd number from 3, so that the model is the middle")
    half = steps // 2
    offsets = np.arange(-half, half + 1, dtype=np.float64) * (reach / half)
    weights = weights_of(model)
    generator = torch.Generator().manual_seed(seed)
    first, second = (random_direction(model, generator) for _ in range(2))

    def at(point: int) -> dict[str, Tensor]:
        state = weights
        for offset, direction in ((float(offsets[point // steps]), first), (float(offsets[point % steps]), second)):
            if offset:  # the middle is the model's own tensors: its very loss
                state = state | {name: state[name] + offset * direction[name] for name in direction}
        return state

    losses = _losses(model, at, steps**2, loss, batches, progress)
    return Landscape(offsets, losses.reshape(steps, steps), images_in(batches))


def interpolation(
    model: nn.Module,
    other: Mapping[str, Tensor],
    loss: Loss,
    batches: Batches,
    *,
    steps: int = 21,
    progress: Progress | None = None,
) -> Interpolation:
    """The loss from `model` to the model with the state `other`, and the height of the barrier between them.

    The barrier is that of Entezari et al., ICLR 2022, arXiv 2110.06296. Running statistics of batch norm go along.
    `batches` and the rest as in `loss_landscape`. Raises UserError for a state of another architecture.
    """
    if steps < 2:
        raise UserError(f"interpolation: steps is {steps}; give 3 or more, for both ends and something between")
    weights, saved = weights_of(model), _unwrapped(model).state_dict()
    ends = {name: weights[name] for name in weights if name in saved and weights[name].is_floating_point()}
    for name, tensor in ends.items():
        if name not in other or other[name].shape != tensor.shape:
            raise UserError(
                f"interpolation: the other model has no {name} of shape {tuple(tensor.shape)}; "
                f"give two models of one architecture and one number of classes"
            )
    target = {name: other[name].to(tensor) for name, tensor in ends.items()}
    positions = np.linspace(0, 1, steps)

    def at(point: int) -> dict[str, Tensor]:
        share = float(positions[point])
        return weights | {name: (1 - share) * ends[name] + share * target[name] for name in ends}

    losses = _losses(model, at, steps, loss, batches, progress)
    line = (1 - positions) * losses[0] + positions * losses[-1]
    return Interpolation(positions, losses, float((losses - line).max()))


def random_direction(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A Gaussian direction, each filter scaled to the norm of the model's; parameters of one dimension have no part."""
    direction = {}
    for name, weight in _unwrapped(model).named_parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device).flatten(1)
            scale = weight.detach().flatten(1).norm(dim=1, dtype=torch.float64) / noise.norm(dim=1, dtype=torch.float64)
            direction[name] = (noise * scale[:, None]).view_as(weight).to(at_least_float32(weight))
    return direction


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name as new leaves, in float32 or better; those that are so already share memory."""
    model = _unwrapped(model)
    state = [*model.named_parameters(), *model.named_buffers()]
    # matmul chooses its kernel by `requires_grad`, also under no_grad: kept, so that the middle's loss is the model's
    return {name: x.detach().to(at_least_float32(x)).requires_grad_(x.requires_grad) for name, x in state}


def loss_at(model: nn.Module, state: dict[str, Tensor], loss: Loss, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of `model` if its parameters and buffers were `state`: a scalar, part of the graph of `state`."""
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), images.dtype)
    with torch.autocast(images.device.type, enabled=False):
        return loss(functional_call(_unwrapped(model), state, (images.to(dtype),)), labels)


def images_in(batches: Batches) -> int:
    """How many images there are. Raises UserError for none."""
    total = sum(len(images) for images, _ in batches)
    if not total:
        raise UserError("there are no images to take the loss of; give at least one batch of (images, labels)")
    return total


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The type to compute in: of halves float32, of all else its own."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype


def _unwrapped(model: nn.Module) -> Any:
    return getattr(model, "_orig_mod", model)


def _losses(
    model: nn.Module,
    at: Callable[[int], dict[str, Tensor]],
    points: int,
    loss: Loss,
    batches: Batches,
    progress: Progress | None,
) -> NDArray[np.float64]:
    """The mean loss over all images with the weights of each point, (points,)."""
    total = images_in(batches)
    losses = np.zeros(points)
    with torch.no_grad(), evaluating(model):
        for point in range(points):
            state = at(point)
            for images, labels in batches:
                losses[point] += float(loss_at(model, state, loss, images, labels)) * (len(images) / total)
            if progress is not None:
                progress(point + 1, points)
    return losses
