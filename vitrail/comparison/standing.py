"""Answers of several models to the same images -> how good each is, and which can be told apart.

An accuracy has Wilson's interval over the images. A difference is paired: image by image, and seed by seed where both
were trained with several, which takes out what is hard or lucky for both. With one seed it is the interval of Agresti
and Min (2005: half a count is added to each of the four cells), beside it McNemar's exact p, and it says nothing of
what other seeds would give; with more, the wider of the two intervals of `studies.verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.comparison.charts import Bin
from vitrail.comparison.figures import wilson
from vitrail.comparison.studies.verdict import Interval, student
from vitrail.training.ensemble import temperature
from vitrail.training.metrics import BINS, calibration_error

SHOWN = 8  # images on which the models disagree
SHOWN_OF_A_CLASS = 2


class Answers(NamedTuple):
    """What one run says of the scored images. N images, K classes."""

    logits: NDArray[np.float64]
    """(N, K)."""
    labels: NDArray[np.int64]
    """(N,)."""
    names: tuple[str, ...]
    """What the images are called."""
    numbers: NDArray[np.int64]
    """(N,): their numbers in the split."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) class numbers."""
        return self.logits.argmax(axis=1)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,)."""
        return self.predicted == self.labels

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K), softmax."""
        return torch.from_numpy(self.logits).softmax(dim=1).numpy()


BySeed = Mapping[int, Answers]


def accuracy(answers: BySeed) -> dict[str, Any]:
    """The mean over seeds, Wilson's interval of it over the images, each seed's share and their deviation."""
    shares = [float(one.right.mean()) for one in answers.values()]
    mean, n = float(np.mean(shares)), min(len(one.labels) for one in answers.values())
    low, high = wilson(mean, n)
    spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
    return {"top1": mean, "low": low, "high": high, "n": n, "by_seed": shares, "spread": spread}


def difference(one: BySeed, other: BySeed) -> dict[str, Any]:
    """Points of accuracy by which `one` lies above `other`, with an interval; both trained with at least one same seed.

    Returns points, low, high, seeds, how (images or seeds: what the interval is over), p (McNemar's, one seed alone).
    """
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) == 1:
        return _by_images(one[seeds[0]].right, other[seeds[0]].right)
    names = {name: k for k, name in enumerate(dict.fromkeys(name for seed in seeds for name in one[seed].names))}
    apart = np.full((len(seeds), len(names)), np.nan)  # a seed may have held out other images
    for row, seed in zip(apart, seeds, strict=True):
        place = [names[name] for name in one[seed].names]
        row[place] = one[seed].right.astype(float) - other[seed].right
    found = over_seeds(apart)
    return {
        "points": found.mean,
        "low": found.low,
        "high": found.high,
        "seeds": len(seeds),
        "how": "seeds" if found.by_seed > found.by_image else "images",
        "p": None,
    }


def over_seeds(apart: NDArray[np.float64]) -> Interval:
    """(seeds, images) differences of right answers, NaN where a seed did not score an image: `verdict.interval`."""
    seeds, images = apart.shape
    by_seed, by_image = 100 * np.nanmean(apart, axis=1), 100 * np.nanmean(apart, axis=0)
    return Interval(
        float(by_seed.mean()),
        student(seeds - 1) * float(by_seed.std(ddof=1)) / math.sqrt(seeds),
        1.96 * float(by_image.std(ddof=1)) / math.sqrt(images),
    )


def _by_images(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> dict[str, Any]:
    from scipy.stats import binomtest

    n, gained, lost = len(one), int((one & ~other).sum()), int((other & ~one).sum())
    centre = (gained - lost) / (n + 2)
    half = 1.96 * math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return {
        "points": 100 * (gained - lost) / n,
        "low": 100 * max(-1.0, centre - half),
        "high": 100 * min(1.0, centre + half),
        "seeds": 1,
        "how": "images",
        "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def told_apart(found: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on one side of 0."""
    return bool(found["low"] > 0 or found["high"] < 0)


# ---------------------------------------------------------------------- class by class


def by_class(answers: BySeed, classes: int) -> dict[str, Any]:
    """Confusion counts, all seeds together (rows: true class), the share of each class that is right, its images."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for one in answers.values():
        np.add.at(counts, (one.labels, one.predicted), 1)
    images = counts.sum(axis=1)
    shares = [float(counts[k, k] / images[k]) if images[k] else None for k in range(classes)]
    return {"confusion": counts.tolist(), "recall": shares, "images": images.tolist()}


# ---------------------------------------------------------------------- calibration


def calibration(answers: BySeed) -> dict[str, Any]:
    """Expected calibration error (15 bins) as it is and after temperature scaling, means over the seeds; the bins.

    The temperature of one half of the images, drawn evenly from the classes, is applied to the other, and the other way
    round, so that every image is scored and none with a temperature that was fitted to it.
    """
    plain = [_confidence(one.logits, one.labels) for one in answers.values()]
    scaled = [_cooled(one) for one in answers.values()]
    pooled = [torch.cat(column) for column in zip(*plain, strict=True)]
    return {
        "error": _mean([calibration_error(*one) for one in plain]),
        "scaled": _mean([calibration_error(*one[:2]) for one in scaled]),
        "temperature": _mean([one[2] for one in scaled]),
        "confidence": float(pooled[0].mean()),
        "bins": [bin._asdict() for bin in bins_of(pooled[0], pooled[1])],
    }


def bins_of(confidence: torch.Tensor, right: torch.Tensor) -> list[Bin]:
    """The bins of the calibration error that hold images: equal width, open below."""
    number = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
    found = []
    for k in number.unique().tolist():
        inside = number == k
        shares = float(confidence[inside].mean()), float(right[inside].double().mean())
        found.append(Bin(*shares, int(inside.sum())))
    return found


def _confidence(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    highest, predicted = torch.from_numpy(logits).softmax(dim=1).max(dim=1)
    return highest, predicted == torch.from_numpy(labels)


def _cooled(one: Answers) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Confidence and rightness after scaling each half with the other's temperature, and the mean temperature."""
    half = np.zeros(len(one.labels), dtype=np.int64)
    half[np.argsort(one.labels, kind="stable")] = np.arange(len(one.labels)) % 2
    if len(one.labels) < 2:
        return *_confidence(one.logits, one.labels), 1.0
    heat = [
        temperature(torch.from_numpy(one.logits[half == k]), torch.from_numpy(one.labels[half == k])) for k in (0, 1)
    ]
    return *_confidence(one.logits / np.array(heat)[1 - half][:, None], one.labels), _mean(heat)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# ---------------------------------------------------------------------- where they disagree


def disagreements(answers: Mapping[str, Answers], classes: Sequence[str]) -> dict[str, Any]:
    """How often all, none or some are right, how often one alone is, and the images that divide them most.

    Most divided: of the images that some name rightly and others wrongly, those with the largest deviation over the
    models of the true class's probability; few of a class, so that they differ.
    """
    first = next(iter(answers.values()))
    right = np.stack([one.right for one in answers.values()])
    true = np.stack([one.probabilities[np.arange(len(first.labels)), first.labels] for one in answers.values()])
    votes, models = right.sum(axis=0), len(answers)
    divided = np.flatnonzero((votes > 0) & (votes < models))
    chosen: list[int] = []
    for i in divided[np.argsort(-true.std(axis=0)[divided], kind="stable")].tolist():
        if sum(first.labels[j] == first.labels[i] for j in chosen) < SHOWN_OF_A_CLASS:
            chosen.append(i)
        if len(chosen) == SHOWN:
            break
    return {
        "all_right": int((votes == models).sum()),
        "none_right": int((votes == 0).sum()),
        "divided": len(divided),
        "alone": {label: int((right[k] & (votes == 1)).sum()) for k, label in enumerate(answers)},
        "images": [_told(answers, classes, i) for i in chosen],
    }


def _told(answers: Mapping[str, Answers], classes: Sequence[str], i: int) -> dict[str, Any]:
    """One image, and what each model says of it."""
    first = next(iter(answers.values()))
    said = {
        label: {
            "predicted": classes[int(one.predicted[i])],
            "probability": float(one.probabilities[i].max()),
            "right": bool(one.right[i]),
        }
        for label, one in answers.items()
    }
    label = classes[int(first.labels[i])]
    return {"file": first.names[i], "index": int(first.numbers[i]), "true": label, "answers": said}
