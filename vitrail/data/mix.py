"""MixUp and CutMix, and the soft targets that go with them, as DeiT's released recipe has them.

One lambda a batch, drawn from Beta(alpha, alpha); the partner of image i is image B-1-i (the batch flipped); CutMix
takes a box of share 1 - lambda around a random centre and corrects lambda for what the border cuts off; label smoothing
is folded into the targets, once. MixUp: Zhang et al. 2018, arXiv 1710.09412; CutMix: Yun et al. 2019, arXiv 1905.04899.

What smoothing eps means follows from what a label says. One class of K: eps is spread over the K classes (eps / K, and
1 - eps + eps / K at the label), whichever loss is used, as in timm and DeiT III. Several labels are K questions with
two answers each: every answer is smoothed towards 1/2 (eps / 2 and 1 - eps / 2), as in timm's multi-label Mixup and
Keras; eps / K would leave the noes nearly certain and doubt the yeses alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mixup: float,
    cutmix: float,
    smoothing: float,
    prob: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mixes a batch with its flip: images (B, C, H, W) -> the same shape, labels -> targets (B, num_classes) float.

    `mixup` and `cutmix` are the alphas; 0 turns one off, and where both are on each batch draws one of them. `prob` is
    the share of the batches that are mixed at all. `labels` are (B,) class numbers or (B, num_classes) multi-hot. The
    random numbers are torch's global ones, on the CPU. The images given are not changed.
    """
    targets = soft_targets(labels, num_classes, smoothing)
    if prob < 1 and torch.rand(()).item() >= prob:
        return images, targets
    if cutmix > 0 and (mixup <= 0 or torch.rand(()).item() < 0.5):
        box, lam = draw_box(images.shape[-2], images.shape[-1], _draw_lambda(cutmix))
        images = cut_and_paste(images, box)
    elif mixup > 0:
        lam = _draw_lambda(mixup)
        images = images * lam + images.flip(0) * (1 - lam)
    else:
        return images, targets
    return images, targets * lam + targets.flip(0) * (1 - lam)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(B,) class numbers -> (B, K): smoothing / K everywhere, and 1 - smoothing more at the label.

    (B, K) multi-hot -> (B, K): smoothing / 2 for no, 1 - smoothing / 2 for yes.
    """
    if labels.ndim == 2:
        return labels.float() * (1 - smoothing) + smoothing / 2
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def draw_box(height: int, width: int, lam: float) -> tuple[tuple[int, int, int, int], float]:
    """CutMix's box (top, bottom, left, right) around a random centre, clipped, and the share it leaves uncovered."""
    side = math.sqrt(1 - lam)
    top, bottom = _clipped(height, int(height * side))
    left, right = _clipped(width, int(width * side))
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def cut_and_paste(images: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The batch with the box of its flip pasted in."""
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def _clipped(length: int, cut: int) -> tuple[int, int]:
    centre = int(torch.randint(length, ()))
    return max(centre - cut // 2, 0), min(centre + (cut + 1) // 2, length)


def _draw_lambda(alpha: float) -> float:
    return float(Beta(alpha, alpha).sample())
