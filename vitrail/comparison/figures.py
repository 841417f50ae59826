"""The figures that a report shows first: how good the run is, with what guessing would reach beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitrail.recipe import Recipe

BINARY = "binary cross-entropy, summed over classes"
Figure = tuple[str, str, str]  # the number, what it is, a remark


def figures(final: dict[str, Any], recipe: Recipe) -> list[Figure]:
    """Those of a run's final scores."""
    tell = {"top1": _one_label, "map": _several_labels}.get(metric_of(final), _patches)
    return tell(final, recipe)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (95 % by default) of a share measured on `n` images."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def metric_of(final: dict[str, Any]) -> str:
    """The key of the number that counts most."""
    return final.get("metric", "top1")


def _one_label(final: dict[str, Any], recipe: Recipe) -> list[Figure]:
    n, top1, classes = final["n"], final["top1"], len(final["classes"])
    low, high = wilson(top1, n)
    loss = ("cross-entropy", f"guessing: {math.log(classes):.2f}")
    if recipe.loss == "bce":
        loss = (BINARY, f"guessing: {_surprise([1 / classes] * classes):.2f}")
    five = [(f"{final['top5']:.2%}", "right class among the first five", "")] if classes > 5 else []
    return [
        (f"{top1:.2%}", f"{final['split']} accuracy", f"95% interval {low:.1%} to {high:.1%}"),
        (f"{round(top1 * n):,} of {n:,}", "images named rightly", f"guessing: {n / classes:,.0f}"),
        *five,
        (f"{final['loss']:.3f}", *loss),
    ]


def _several_labels(final: dict[str, Any], _recipe: Recipe) -> list[Figure]:
    shares = [row["n"] / final["n"] for row in final["per_class"] if row["n"]]
    guess = sum(shares) / max(len(shares), 1)
    return [
        (f"{final['map']:.2%}", f"{final['split']} mean average precision", f"guessing: {guess:.1%}"),
        (f"{final['macro_f1'] or 0:.3f}", "F1 at 0.5, mean over classes", f"{len(shares)} classes occur"),
        (f"{final['micro_f1']:.3f}", "F1 at 0.5, all labels together", f"{final['n']:,} images"),
        (f"{final['loss']:.3f}", BINARY, f"guessing: {_surprise(shares):.2f}"),
    ]


def _patches(final: dict[str, Any], recipe: Recipe) -> list[Figure]:
    patches = (f"{final['patches']:,}", "corrupted patches", f"of {final['n']:,} images")
    if final["metric"] == "patch_r2":
        share = (f"{final['patch_r2']:.2%}", "of the patches' variance predicted", "the mean patch: 0%")
        return [share, patches, (f"{final['loss']:.4f}", "mean squared error", "pixels from 0 to 1")]
    uniform = math.log(8) * (recipe.data.in_chans or 3)
    return [
        (f"{final['patch_accuracy']:.2%}", "of the patches' colours right", f"the commonest: {final['baseline']:.1%}"),
        patches,
        (f"{final['loss']:.3f}", "cross-entropy", f"guessing: {uniform:.2f}"),
    ]


def _surprise(shares: Sequence[float]) -> float:
    """Binary cross-entropy, summed over classes, of a model that knows only how common each class is."""
    return sum(-share * math.log(share) - (1 - share) * math.log(1 - share) for share in shares if 0 < share < 1)
