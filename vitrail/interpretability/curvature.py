"""The largest eigenvalue of the loss's Hessian: how sharp a minimum is. PyHessian: Neural Networks Through the Lens of
the Hessian. Yao, Gholami, Keutzer and Mahoney, IEEE BigData 2020, arXiv 1912.07145.

Idea      a Hessian times a vector is the gradient of (gradient . vector): the matrix is never formed. Multiplied again
          and again, any vector turns to the eigenvector of the largest eigenvalue.
Caution   it follows loss, data, and the scale of the weights (behind a norm, weights twice as long look four times as
          flat): compare within one protocol. Weight decay is not in it; label smoothing, if in `loss`, is. ReLUs have
          no curvature of their own. Power iteration finds the largest |eigenvalue|, which in a ViT may be negative.
Cost      two to three gradients an iteration and micro-batch, of attention with its weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.landscape import Batches, Loss, images_in, loss_at, weights_of
from vitrail.interpretability.still import evaluating
from vitrail.interpretability.stream import trunk
from vitrail.layers.attention import probing

Product = Callable[[Tensor], Tensor]


class Curvature(NamedTuple):
    """The top of the Hessian's spectrum, in units of the loss."""

    value: float
    """The largest eigenvalue; never above the true one, however early the search ended."""
    magnitude: float
    """The eigenvalue of the largest absolute value, with its sign."""
    iterations: int
    """Products with the Hessian."""
    converged: bool
    """Whether the search for `value` has come to rest."""
    residual: float
    """|H v - value v| for the unit vector v found: some eigenvalue is this near to `value`."""
    images: int
    """How many the loss is a mean over."""


class Found(NamedTuple):
    """What a power iteration found, fields as in Curvature."""

    value: float
    residual: float
    iterations: int
    converged: bool


def top_eigenvalue(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
    parameters: Iterable[str] | None = None,
) -> Curvature:
    """The largest eigenvalue of the Hessian of the mean loss over all images, by the `parameters` named (None: all).

    `batches` are images (B, C, H, W), normalised, with what `loss` takes as labels, on the model's device; small ones
    save memory. A search is over when a step changes the value by less than `tolerance` of it and the residual is
    below the root of that; it takes at most `iterations`. Unless it ends at a positive value, a second one looks for
    that, on H + |largest| I. Eval mode, float32, or float64 if the model is. Raises UserError for unknown
    parameters, no images, and a curvature that is not finite.
    """
    with evaluating(model):
        product, size, like = hessian_product(model, loss, batches, parameters)
        generator = torch.Generator().manual_seed(seed)
        first = dominant(product, torch.randn(size, generator=generator).to(like), iterations, tolerance)
        searches = [first]
        if not (first.converged and first.value > 0):
            shift = sqrt(first.value**2 + first.residual**2)  # |H v|: also where +a and -a hold each other up
            start = torch.randn(size, generator=generator).to(like)
            found = dominant(lambda v: product(v) + shift * v, start, iterations, tolerance)
            searches.append(found._replace(value=found.value - shift))
    if not all(isfinite(found.value) for found in searches):
        raise UserError(
            "top_eigenvalue: the curvature is not finite: weights or images are not, or a vector of zeros is "
            "normalised (SwinV2 does it to padding); check the weights, and take an img_size that the windows divide"
        )
    best = max(searches, key=lambda found: found.value)  # v.Hv never exceeds the largest eigenvalue
    largest = max(searches, key=lambda found: abs(found.value))
    total = sum(found.iterations for found in searches)
    return Curvature(best.value, largest.value, total, best.converged, best.residual, images_in(batches))


def block_eigenvalues(
    model: nn.Module, loss: Loss, batches: Batches, *, iterations: int = 50, tolerance: float = 1e-3, seed: int = 0
) -> dict[str, Curvature]:
    """The largest eigenvalue of each block's own part of the Hessian, all else held still, by the block's name."""
    found = {}
    for block in trunk(model):
        names = [f"{block}.{name}" for name, _ in model.get_submodule(block).named_parameters()]
        found[block] = top_eigenvalue(
            model, loss, batches, iterations=iterations, tolerance=tolerance, seed=seed, parameters=names
        )
    return found


def hessian_product(
    model: nn.Module, loss: Loss, batches: Batches, parameters: Iterable[str] | None = None
) -> tuple[Product, int, Tensor]:
    """v -> H v for flat vectors (P,), H the Hessian of the mean loss; with it P, and a tensor of its type and device.

    The model should be in eval mode.
    """
    state, total = weights_of(model), images_in(batches)
    known = [name for name, _ in getattr(model, "_orig_mod", model).named_parameters()]
    names = known if parameters is None else list(parameters)
    if not names or set(names) - set(known):
        missing = ", ".join(sorted(set(names) - set(known))) or "name in the list"
        raise UserError(f"top_eigenvalue: there is no parameter {missing}; take names of model.named_parameters()")
    for name, tensor in state.items():
        tensor.requires_grad_(name in names)
    leaves = [state[name] for name in names]
    sizes = [leaf.numel() for leaf in leaves]

    def product(vector: Tensor) -> Tensor:
        result = torch.zeros_like(vector)
        for images, labels in batches:
            # fused attention has no second derivative; while somebody watches, its weights are spelt out, and have one
            with torch.enable_grad(), probing(lambda _site, weights: weights):
                value = loss_at(model, state, loss, images, labels) * (len(images) / total)
                gradient = flat(torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True))
                slope = gradient @ vector
            if slope.requires_grad:  # else the loss is linear, and its Hessian 0
                result += flat(torch.autograd.grad(slope, leaves, materialize_grads=True))
        return result

    return product, sum(sizes), leaves[0]


def dominant(product: Product, start: Tensor, iterations: int, tolerance: float) -> Found:
    """The eigenvalue of the largest absolute value of a symmetric matrix, known by its `product` with a vector (P,)."""
    vector, value, residual = start, inf, inf
    for done in range(1, iterations + 1):
        vector = vector / torch.linalg.vector_norm(vector)
        image = product(vector)
        before, value = value, (vector * image).sum(dtype=torch.float64).item()
        residual = torch.linalg.vector_norm(image - value * vector).item()
        rest = abs(value - before) <= tolerance * abs(value) and residual <= sqrt(tolerance) * abs(value)
        if rest or residual <= tolerance * abs(value):
            return Found(value, residual, done, True)
        vector = image
    return Found(value, residual, iterations, False)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])
