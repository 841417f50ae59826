"""A comparison in plain words: sentences that are chosen by intervals and made of numbers that stand on the page.

A model is called better where the interval of the paired difference lies above 0, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vitrail.comparison.charts import short_count
from vitrail.comparison.figures import wilson
from vitrail.comparison.standing import told_apart

Numbers = Mapping[str, Any]
TELLING = 3  # rivals that are named with their numbers


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %"


def shares(found: Numbers) -> str:
    """The interval of an accuracy."""
    return f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"


def points(found: Numbers) -> str:
    """The interval of a difference."""
    return f"{found['low']:.1f} to {found['high']:.1f}"


def corrupted(found: Numbers) -> tuple[float, float, float]:
    """Mean accuracy over corruptions and severities, with Wilson's interval over the images: images that are made
    worse in several ways count once, so it is rather too wide."""
    mean = 1 - found["corruptions"]["mean_error"]
    return mean, *wilson(mean, found["n"])


def between(differences: Sequence[Numbers], one: str, other: str) -> Numbers:
    """The difference `one` - `other`, whichever way round it was taken."""
    for found in differences:
        if (found["one"], found["other"]) == (one, other):
            return found
        if (found["one"], found["other"]) == (other, one):
            turned = {"points": -found["points"], "low": -found["high"], "high": -found["low"]}
            return {**found, "one": one, "other": other, **turned}
    raise KeyError((one, other))


def summary(found: Numbers) -> list[str]:
    """The sentences, the most important first."""
    models = found["models"]
    told = [*_standing(models, found["differences"]), *_cost(models, found["differences"])]
    told += [_calibration(models), *_fewer_images(found["fractions"]), *_corruptions(found["robustness"])]
    votes = found["disagreement"]
    told.append(
        f"All models are right on {votes['all_right']:,} of the images and none on {votes['none_right']:,}; on "
        f"{votes['divided']:,} some are right and others wrong."
    )
    if any(model["seeds"] == 1 for model in models):
        told.append(
            "Models with one seed: the intervals hold for these very weights; what another seed would have given "
            "is not in them."
        )
    return told


def _standing(models: Sequence[Numbers], differences: Sequence[Numbers]) -> list[str]:
    """Who is first, and whether each that follows can be told from the one before."""
    best = models[0]
    gaps = [between(differences, best["label"], one["label"]) for one in models[1:]]
    rivals = [gap for gap in gaps if not told_apart(gap)]
    above = [gap for gap in gaps if gap["high"] < 0]  # runs of other seeds: accuracies are means over all of a model's
    head = f"{share(best['accuracy']['top1'])} ({shares(best['accuracy'])})"
    if rivals:
        named = "; ".join(f"{gap['other']} ({_gap(gap)})" for gap in rivals[:TELLING])
        more = " and others" if len(rivals) > TELLING else ""
        told = [f"{best['label']} has the highest accuracy, {head}, but cannot be told apart from {named}{more}."]
    elif above:
        told = [f"{best['label']} has the highest accuracy, {head}, over all its seeds."]
    else:
        next_one = f"{gaps[0]['points']:.1f} points above {gaps[0]['other']} (interval {points(gaps[0])})"
        told = [f"{best['label']} is the most accurate: {head}, {next_one}."]
    told += [
        f"On the seeds that both have, {gap['other']} is better than {best['label']}: {_gap(gap)}." for gap in above
    ]
    for one, other in pairwise(models[1:]):
        gap = between(differences, one["label"], other["label"])
        if told_apart(gap):
            told.append(f"{one['label']} and {other['label']} differ: {_gap(gap)}.")
        else:
            told.append(f"{one['label']} and {other['label']} cannot be told apart ({_gap(gap)}).")
    return told


def _gap(found: Numbers) -> str:
    return f"{found['points']:.1f} points, interval {points(found)}"


def _cost(models: Sequence[Numbers], differences: Sequence[Numbers]) -> list[str]:
    best, told = models[0], []
    equals = [one for one in models[1:] if not told_apart(between(differences, best["label"], one["label"]))]
    cheaper = min(equals, key=lambda one: one["flops"], default=best)
    if cheaper["flops"] < best["flops"]:
        told.append(
            f"{cheaper['label']}, which cannot be told apart from {best['label']}, takes "
            f"{short_count(cheaper['flops'])} multiply-adds an image against {short_count(best['flops'])}."
        )
    fastest, slowest = (pick(models, key=lambda one: one["images_per_second"]["32"]) for pick in (max, min))
    told.append(
        f"In batches of 32, {fastest['label']} is the fastest with {fastest['images_per_second']['32']:,.0f} images a "
        f"second, {slowest['label']} the slowest with {slowest['images_per_second']['32']:,.0f}."
    )
    return told


def _calibration(models: Sequence[Numbers]) -> str:
    ordered = sorted(models, key=lambda one: one["calibration"]["error"])
    scaled = sorted(one["calibration"]["scaled"] for one in models)
    return (
        f"Calibration errors lie between {ordered[0]['calibration']['error']:.3f} ({ordered[0]['label']}) and "
        f"{ordered[-1]['calibration']['error']:.3f} ({ordered[-1]['label']}), after temperature scaling between "
        f"{scaled[0]:.3f} and {scaled[-1]:.3f}."
    )


def _fewer_images(fractions: Sequence[Numbers]) -> list[str]:
    """Who is first where the training images are fewest."""
    if not fractions or len(fractions[0]["models"]) < 2:
        return []
    least = fractions[0]
    first, second = sorted(least["models"], key=lambda label: -least["models"][label]["top1"])[:2]
    gap = between(least["differences"], first, second)
    apart = "" if told_apart(gap) else ", which do not tell them apart"
    return [
        f"With {least['images']:,} images to train on, {first} has {share(least['models'][first]['top1'])} and "
        f"{second}, the next, {share(least['models'][second]['top1'])}: {gap['points']:.1f} points (interval "
        f"{points(gap)}){apart}."
    ]


def _corruptions(robustness: Mapping[str, Numbers]) -> list[str]:
    kept = {label: corrupted(found) for label, found in robustness.items() if found["corruptions"]["rows"]}
    if len(kept) < 2:
        return []
    first, second = sorted(kept, key=lambda label: -kept[label][0])[:2]
    (mean, low, high), (next_mean, next_low, next_high) = kept[first], kept[second]
    numbers = (
        f"{first} is right on {share(mean)} ({100 * low:.1f} to {100 * high:.1f}), {second}, the next, on "
        f"{share(next_mean)} ({100 * next_low:.1f} to {100 * next_high:.1f})"
    )
    apart = "" if low > next_high else "; these intervals overlap, so that this is no order"
    return [f"On corrupted images {numbers}{apart}."]
