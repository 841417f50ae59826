"""Images changed on purpose so that a model errs. FGSM: Explaining and Harnessing Adversarial Examples. Goodfellow,
Shlens and Szegedy, ICLR 2015, arXiv 1412.6572. PGD: Towards Deep Learning Models Resistant to Adversarial Attacks.
Madry et al., ICLR 2018, arXiv 1706.06083.

Idea      the loss is climbed in the pixels: once, by the sign of the gradient (FGSM), or in small steps from a random
          start, each followed by a projection back to what is allowed (PGD).
Caution   what survives here may fall to a stronger attack (more steps, restarts): these accuracies are upper bounds.
          Where the gradient is exactly zero a pixel, or in L2 an image, stays. All is in float32 with autocast off,
          since half precision rounds small gradients to zero.
Cost      FGSM one forward and backward pass, PGD as many as it has steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.interpretability.still import frozen

TINY = 1e-10


def fgsm(
    model: nn.Module,
    images01: Tensor,
    labels: Tensor,
    eps: float = 8 / 255,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """clip(x + eps sign(d cross-entropy / dx)): images (B, C, H, W) in [0, 1], labels (B,) -> images as far off as
    `eps` a pixel, in [0, 1], without a graph.

    `mean` and `std` normalise what the model sees. The model is attacked in eval mode; its modes and its parameters'
    requires_grad are as they were afterwards. Raises UserError for eps below 0, for images beyond [0, 1] and for a
    model that sees no pixels but the nearest of a few colours.
    """
    _check(images01, eps)
    with frozen(model):
        gradient = _gradient(model, images01, labels, mean, std)
    return (images01 + eps * gradient.sign()).clamp(0, 1)


def pgd(
    model: nn.Module,
    images01: Tensor,
    labels: Tensor,
    eps: float = 8 / 255,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    step: float = 2 / 255,
    steps: int = 10,
    random_start: bool = True,
    norm: Literal["linf", "l2"] = "linf",
    seed: int = 0,
) -> Tensor:
    """`steps` steps of size `step` up the loss, each projected to the ball of radius `eps` and to [0, 1].

    linf: a step is step sign(g), `eps` bounds a pixel (start: uniform in the ball). l2: step g / |g|, `eps` bounds the
    Euclidean norm of an image's whole change (start: uniform direction, uniform radius). The start comes from `seed`,
    the same on every device. Arguments, model and errors otherwise as of `fgsm`. Source: torchattacks, PGD and PGDL2.
    """
    _check(images01, eps)
    if norm not in ("linf", "l2"):
        raise UserError(f"norm is '{norm}'; an attack is bounded in linf or l2")
    moved = images01
    if random_start:
        moved = (images01 + _start(images01, eps, norm, seed)).clamp(0, 1)
    with frozen(model):
        for _ in range(steps):
            gradient = _gradient(model, moved, labels, mean, std)
            uphill = gradient.sign() if norm == "linf" else gradient / (_length(gradient) + TINY)
            change = moved + step * uphill - images01
            change = change.clamp(-eps, eps) if norm == "linf" else _shortened(change, eps)
            moved = (images01 + change).clamp(0, 1)
    return moved


def normalised(images01: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of images (B, C, H, W) in [0, 1], channel by channel."""
    centre, spread = (images01.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images01 - centre) / spread


def _check(images01: Tensor, eps: float) -> None:
    if eps < 0:
        raise UserError(f"eps is {eps}; how far an attack may go must not be negative")
    if len(images01) and not 0 <= float(images01.min()) <= float(images01.max()) <= 1:
        raise UserError("an attack takes images in [0, 1]; give them before they are normalised")


def _gradient(model: nn.Module, x: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Of the cross-entropy, summed over the images, so that none depends on its neighbours."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().float().requires_grad_()
        loss = F.cross_entropy(model(normalised(x, mean, std)).float(), labels, reduction="sum")
        if not loss.requires_grad:
            raise not_available("an attack by gradient", model, "no gradient reaches the pixels")
        return torch.autograd.grad(loss, x)[0]


def _start(images01: Tensor, eps: float, norm: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(images01.shape)
    if norm == "linf":
        noise.uniform_(-eps, eps, generator=generator)
    else:
        noise.normal_(generator=generator)
        radius = torch.empty(len(noise), 1, 1, 1).uniform_(generator=generator)
        noise *= radius / _length(noise) * eps
    return noise.to(images01.device)


def _length(x: Tensor) -> Tensor:
    """Euclidean norm of each image: (B, C, H, W) -> (B, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def _shortened(change: Tensor, eps: float) -> Tensor:
    """Each image's change, at most `eps` long."""
    return change * (eps / (_length(change) + TINY)).clamp(max=1)
