"""Logits and labels -> numbers: one label an image (accuracy and kin) or several (average precision and kin).

Shares are fractions of the images scored. What is undefined, such as the precision of a class that the images lack,
is None, and means are taken over the classes that occur, except the macro F1 of one label an image, which as in
scikit-learn counts every class. That library scores several labels alone: its import takes two seconds, which every
short training would wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Name = Callable[[int], str]
BINS = 15
MISTAKES = 16


@dataclass(frozen=True)
class Scored:
    """What a model says of every readable image of a split. N images, K classes."""

    logits: Tensor
    """(N, K) float32."""
    labels: Tensor
    """(N,) long, or (N, K) float multi-hot."""
    index: Tensor
    """(N,) long: which image of the split."""
    damaged: list[str]
    """Names of the images that could not be read; they are in no denominator."""

    def hot(self) -> Tensor:
        """The labels as (N, K) zeros and ones."""
        return self.labels if self.labels.ndim == 2 else F.one_hot(self.labels, self.logits.shape[1]).float()

    def loss(self, binary: bool = False) -> float:
        """Mean cross-entropy; `binary`: of a yes or no for every class, summed over the classes."""
        if binary:
            return float(self.binary_losses().mean())
        return float(F.cross_entropy(self.logits, self.labels))

    def binary_losses(self) -> Tensor:
        """(N,) binary cross-entropy of each image, summed over the classes."""
        return F.binary_cross_entropy_with_logits(self.logits, self.hot(), reduction="none").sum(dim=1)

    def top(self, k: int) -> float:
        """Share of images whose label is among the k highest logits."""
        k = min(k, self.logits.shape[1])
        hits = (self.logits.topk(k).indices == self.labels[:, None]).any(dim=1)
        return float(hits.double().mean())

    def mean_average_precision(self) -> float:
        """Average precision of a class is the mean, over its images, of the precision down to each in the order of
        the logits; this is the mean over the classes that occur (mAP)."""
        return mean([value for value in average_precisions(self) if value is not None]) or 0.0


def one_label(scored: Scored, classes: list[str], name: Name, binary: bool) -> dict[str, Any]:
    """All numbers of a model that gives one class; `name` tells what an image is called. Probabilities are softmax."""
    labels, predicted, k = scored.labels, scored.logits.argmax(dim=1), len(classes)
    probability = scored.logits.double().softmax(dim=1)
    confusion = (labels * k + predicted).bincount(minlength=k * k).reshape(k, k)
    hits, n, said = (count.double() for count in (confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)))
    # where no image is of the class, or called so, there are no hits either: 0 as in scikit-learn
    precision, recall, f1 = hits / said.clamp_min(1), hits / n.clamp_min(1), 2 * hits / (n + said).clamp_min(1)
    return {
        "n": len(labels),
        "damaged": scored.damaged,
        "metric": "top1",
        "top1": scored.top(1),
        "top5": scored.top(5),
        "loss": scored.loss(binary),
        "balanced_accuracy": float(recall[n > 0].mean()),
        "macro_f1": float(f1.mean()),
        "auroc": macro_auroc(probability.numpy(), labels.numpy()),
        "calibration_error": calibration_error(*_confidence(probability, scored.labels)),
        "classes": classes,
        "per_class": [
            {"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "n": int(m)}
            for c, p, r, f, m in zip(classes, precision, recall, f1, n, strict=True)
        ],
        "confusion": confusion.tolist(),
        "mistakes": _confident_mistakes(scored, classes, name),
    }


def several_labels(scored: Scored, classes: list[str], name: Name) -> dict[str, Any]:
    """All numbers of a model that says yes or no to every class: yes where the sigmoid is 0.5 or more."""
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    hot, said = scored.hot().numpy() > 0, scored.logits.numpy() >= 0
    precision, recall, f1, n = precision_recall_fscore_support(hot, said, zero_division=0)
    average = average_precisions(scored)
    return {
        "n": len(hot),
        "damaged": scored.damaged,
        "metric": "map",
        "map": scored.mean_average_precision(),
        "loss": scored.loss(binary=True),
        "macro_f1": mean([float(value) for value, images in zip(f1, n, strict=True) if images]),
        "micro_f1": float(f1_score(hot, said, average="micro", zero_division=0)),
        "classes": classes,
        "per_class": [
            {
                "class": c,
                "average_precision": a,
                "precision": float(p),
                "recall": float(r),
                "f1": float(f),
                "n": int(m),
            }
            for c, a, p, r, f, m in zip(classes, average, precision, recall, f1, n, strict=True)
        ],
        "mistakes": _costly_mistakes(scored, classes, name),
    }


def average_precisions(scored: Scored) -> list[float | None]:
    """Average precision of each class, None where no image has it."""
    from sklearn.metrics import average_precision_score

    columns = zip(scored.hot().numpy().T, scored.logits.numpy().T, strict=True)
    return [float(average_precision_score(hot, said)) if hot.any() else None for hot, said in columns]


def macro_auroc(probability: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Mean over the classes of the chance that an image of the class is given more of it than another image is.

    probability (N, K), labels (N,). Classes without images, or without others, are left out; equals count half.
    """
    chances = []
    for k in np.unique(labels):
        given, others = probability[labels == k, k], np.sort(probability[labels != k, k])
        if len(others):
            below, not_above = (np.searchsorted(others, given, side) for side in ("left", "right"))
            chances.append(float((below + not_above).mean()) / 2 / len(others))
    return mean(chances)


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: sum over equal-width bins of confidence in (0, 1] of n_b / n |accuracy - confidence|.

    Both (N,). Naeini et al., 2015; Guo et al., 2017, use 15 bins.
    """
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = right.double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add(0, number, gap).abs().sum() / len(gap))


def mean(values: list[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def _confidence(probability: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = probability.max(dim=1)
    return confidence, predicted == labels


def _confident_mistakes(scored: Scored, classes: list[str], name: Name) -> list[dict[str, Any]]:
    """The wrong answers given with the highest probability, first the most confident."""
    probability, predicted = scored.logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != scored.labels).nonzero()[:, 0]
    wrong = wrong[probability[wrong].argsort(descending=True)][:MISTAKES]
    return [
        {
            "file": name(int(scored.index[i])),
            "index": int(scored.index[i]),
            "true": classes[int(scored.labels[i])],
            "predicted": classes[int(predicted[i])],
            "probability": float(probability[i]),
        }
        for i in wrong
    ]


def _costly_mistakes(scored: Scored, classes: list[str], name: Name) -> list[dict[str, Any]]:
    """The images with the highest loss of those where some class is wrong: what they show, what they were given."""
    hot, said, loss = scored.hot() > 0, scored.logits >= 0, scored.binary_losses()
    wrong = (hot != said).any(dim=1).nonzero()[:, 0]
    wrong = wrong[loss[wrong].argsort(descending=True)][:MISTAKES]

    def named(row: Tensor) -> list[str]:
        return [classes[k] for k in row.nonzero()[:, 0].tolist()]

    return [
        {
            "file": name(int(scored.index[i])),
            "index": int(scored.index[i]),
            "true": named(hot[i]),
            "predicted": named(said[i]),
            "loss": float(loss[i]),
        }
        for i in wrong
    ]
