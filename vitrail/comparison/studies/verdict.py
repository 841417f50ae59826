"""What models were asked -> a difference, its 95 % interval, and a verdict.

Two things decide what a difference would be another time: the seeds (weights, order, which images are learned from)
and the images that happen to be in the test set. With three seeds neither can be left out. So there are two intervals
about the same mean, and the wider one is used:

    seeds    differences seed by seed: mean +- t s / sqrt(seeds), Student's t with seeds - 1 degrees of freedom
    images   differences image by image, each the mean over the seeds: mean +- 1.96 s / sqrt(images)

Both are paired: seeds that are lucky for all arms and images that are hard for all arms cancel. By the first alone,
three seeds that agree by chance would prove anything; by the second alone, one lucky seed would. Each interval stands
for itself: where a claim has several deciding contrasts, all must be seen, which keeps the error at 5 %; the others
are not corrected for their number. What is asked of a model as a whole (how far its heads look) has the first alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEEN, NOT_SEEN, OPPOSITE = "seen", "not seen here", "the opposite was seen"


@dataclass(frozen=True)
class Interval:
    """A difference in the unit of what was compared, half the width of each 95 % interval, their ends."""

    mean: float
    by_seed: float
    by_image: float

    @property
    def half(self) -> float:
        """Half the width of the wider one."""
        return max(self.by_seed, self.by_image)

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def verdict(self, margin: float = 0.0) -> str:
        """Whether the interval lies above -margin, below it, or holds it."""
        return SEEN if self.low > -margin else OPPOSITE if self.high < -margin else NOT_SEEN


def interval(differences: NDArray[np.float64]) -> Interval:
    """The interval of (seeds, images) differences; at least two seeds. One number a seed: (seeds, 1)."""
    seeds, images = differences.shape
    assert seeds > 1, "one seed has no spread"
    by_seed, by_image = differences.mean(axis=1), differences.mean(axis=0)
    return Interval(
        float(by_seed.mean()),
        student(seeds - 1) * float(by_seed.std(ddof=1)) / math.sqrt(seeds),
        1.96 * float(by_image.std(ddof=1)) / math.sqrt(images) if images > 1 else 0.0,
    )


def contrasted(asked: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The weighted sum of (seeds, images) answers."""
    return np.sum([weight * asked[key] for key, weight in weights.items()], axis=0)


def overall(verdicts: Sequence[str]) -> str:
    """Of the deciding contrasts: seen if all are, the opposite if that was seen of some and the claim of none."""
    if all(verdict == SEEN for verdict in verdicts):
        return SEEN
    return OPPOSITE if OPPOSITE in verdicts and SEEN not in verdicts else NOT_SEEN


def student(freedom: int) -> float:
    """The t that 95 % of Student's distribution stays within: 12.71 for 1 degree of freedom, 4.30 for 2."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
