"""What labels ask of logits: cross-entropy, or a yes or no for every class, each class with its weight.

Both are sums over classes and means over images: the divisor is the number of images whatever their labels weigh, so
that micro-batches and processes add up. A weight multiplies the share of its class in the target (cross-entropy) or the
term of its yes (binary cross-entropy, as torch's pos_weight): an image of a class that weighs 2 pulls twice as hard
towards it, and what the others say of it stays.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources import Source, class_counts
from vitrail.errors import UserError, did_you_mean

PAIR = r"(.+?)=([^=,]+)(?:,|$)"


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_k w_k t_k log softmax(z)_k, mean over images: logits, targets (B, K), weights (K,) -> scalar."""
    return F.cross_entropy(logits, targets, weight=weights)


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_k [w_k t_k log sigmoid(z_k) + (1 - t_k) log(1 - sigmoid(z_k))], mean over images (AugReg and big_vision).

    logits, targets (B, K), weights (K,) -> scalar. timm's BinaryCrossEntropy divides by K unless sum_classes.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    return losses.sum(dim=1).mean()


def class_weights(text: str, source: Source) -> Tensor | None:
    """The weights that `recipe.class_weights` names, (K,) float32; None for none.

    auto: inverse to the number of labels of the class in the training split, scaled to mean 1 over those labels, so
    that the loss keeps its scale. NAME=WEIGHT,...: the classes not named weigh 1. Raises UserError for anything else.
    """
    if text == "none":
        return None
    if text == "auto":
        counts = torch.tensor(list(class_counts(source, source.splits["train"]).values()), dtype=torch.float64)
        known = counts > 0
        return torch.where(known, counts.sum() / (known.sum() * counts.clamp_min(1)), 1.0).float()
    weights = torch.ones(len(source.classes))
    for name, weight in _named_weights(text).items():
        if name not in source.classes:
            near = did_you_mean(name, source.classes)
            raise UserError(f"--class-weights names '{name}', which is no class of {source.name}{near}")
        weights[source.classes.index(name)] = weight
    if not weights.any():
        raise UserError(f"--class-weights {text} leaves nothing to learn: every class weighs 0")
    return weights


def _named_weights(text: str) -> dict[str, float]:
    """cat=2,dog=0.5. A name may hold spaces, commas and equals signs: its weight is the last thing before a comma."""
    pairs = re.findall(PAIR, text) if re.fullmatch(f"(?:{PAIR})+", text) else []
    weights = {name.strip(): number for name, value in pairs if (number := _number(value)) is not None}
    if not pairs or len(weights) < len(pairs):
        raise UserError(f"--class-weights is '{text}'; write none, auto, or each class once as cat=2,dog=0.5")
    return weights


def _number(text: str) -> float | None:
    """A weight, 0 or more, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None
