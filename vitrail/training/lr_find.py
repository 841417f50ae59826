"""The learning-rate range test (Smith, 2017, as fastai does it): train for a moment while the rate grows from far too
small to far too large, and look where the loss falls. The model, data, augmentation, loss and optimiser are those of
training; the weights are thrown away and nothing is written.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from vitrail.data.loader import Batch
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.run import open_data
from vitrail.training.limits import check_numbers
from vitrail.training.loop import Trainer, resolve

MEMORY, WORSE = 0.98, 4.0
SKIPPED_FIRST, SKIPPED_LAST = 0.1, 5
INK, FAINT, ACCENT = "#1b1b1f", "#6b6b76", "#c2410c"


@dataclass(frozen=True)
class RangeTest:
    """What the test saw: one entry an update, in order."""

    lrs: list[float]
    """As --optim.lr takes them (where the recipe has an lr_batch, for that batch size)."""
    losses: list[float]
    """Of each batch."""
    smoothed: list[float]
    """Exponential means of the losses so far, without the bias of the start."""
    suggestion: float
    ended: str
    """Why the test ended, in words."""


def lr_find(recipe: Recipe, *, lowest: float = 1e-7, highest: float = 10.0, updates: int = 100) -> RangeTest:
    """Train `recipe` for up to `updates` batches, from the rate `lowest` to `highest` in equal ratios.

    Ends when the smoothed loss is above four times its best, or not finite. All layers are trained, also where the
    recipe begins with some of them frozen. Raises UserError where the loss never falls.
    Source: fastai, callback/schedule.py (LRFinder, valley); there too the last rate is one ratio below `highest`.
    """
    check_numbers(recipe)
    source = open_data(recipe)
    resolved = resolve(recipe, source)
    unit = resolved.optim.lr / recipe.optim.lr if recipe.optim.lr else 1.0
    lrs = [lowest * (highest / lowest) ** (k / updates) for k in range(updates)]
    losses, ended = _losses(resolved, source, [lr * unit for lr in lrs])
    means = smoothed(losses)
    kept = slice(int(updates * SKIPPED_FIRST), len(losses) - SKIPPED_LAST)
    best = valley(means[kept])
    if best is None:
        tried = f"{len(losses)} learning rates from {lowest:g} to {lrs[len(losses) - 1]:g}"
        raise UserError(f"the loss did not fall at any of the {tried}; look at the data with `vitrail show-batch`")
    return RangeTest(lrs[: len(losses)], losses, means, lrs[kept][best], ended)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean of the losses so far, each weighing 0.98 of the next one."""
    means, total = [], 0.0
    for count, loss in enumerate(losses, 1):
        total = MEMORY * total + (1 - MEMORY) * loss
        means.append(total / (1 - MEMORY**count))
    return means


def valley(losses: Sequence[float]) -> int | None:
    """Half way through the longest descent: the place where a rate helps most. None where no loss is below an earlier.

    The descent is the longest falling subsequence (the first to end, of equals), which may skip losses. As in fastai,
    it is taken to be as many places long as it has members, up to its end, and its half is a third, rounded down, plus
    half a third, rounded down.
    """
    lengths: list[int] = []
    for k, loss in enumerate(losses):
        lengths.append(1 + max((lengths[j] for j in range(k) if losses[j] > loss), default=0))
    length = max(lengths, default=1)
    if length == 1:
        return None
    begin = lengths.index(length) - length
    return max(begin + int(length / 3) + int(length / 6), 0)


def _losses(recipe: Recipe, source: Source, lrs: list[float]) -> tuple[list[float], str]:
    """The loss of each update up to the end of the test, and why it ended."""
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:  # where a task that keeps something for later puts it
        # the moving average is not what is trained, and this is one process
        trainer = Trainer(replace(recipe, ema=None, sharded=False), Path(folder), source)
        trainer.learner.train(frozen=False)
        for lr, batch in zip(lrs, _batches(trainer), strict=False):
            try:
                losses.append(trainer.update(batch, lr))
            except UserError as error:
                if not losses:
                    raise
                return losses, str(error).partition(" at step")[0]
            trainer.step += 1
            means = smoothed(losses)
            if means[-1] > WORSE * min(means):
                return losses, f"the smoothed loss rose above {WORSE:g} times its best"
    return losses, f"all {len(lrs)} updates made"


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """Training's own, epoch after epoch."""
    for epoch in itertools.count():
        images = 0
        for batch in trainer.loader.epoch(epoch):
            images += len(batch.images)
            if len(batch.images):
                yield batch
        if not images:
            raise UserError(
                f"none of the training images of {trainer.source.name} can be read; `vitrail doctor` says why"
            )


def draw(test: RangeTest, path: Path, title: str) -> Path:
    """The test as a PNG file: loss of each batch, smoothed loss and the suggestion, over the learning rate."""
    figure = Figure(figsize=(7.6, 4.4), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(test.lrs, test.losses, color=FAINT, linewidth=1, alpha=0.55, label="loss of each batch")
    axes.plot(test.lrs, test.smoothed, color=INK, linewidth=2, label="smoothed")
    place = test.lrs.index(test.suggestion)
    last = max(place, test.smoothed.index(min(test.smoothed)))
    low, high = min(test.losses), max(test.losses[: last + 1])
    # rates that are far too large make losses beside which all others would be flat: they leave the picture
    axes.set_ylim(low - 0.08 * (high - low), high + 0.35 * (high - low))
    axes.axvline(test.suggestion, color=ACCENT, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(
        [test.suggestion],
        [test.smoothed[place]],
        "o",
        color=ACCENT,
        markersize=7,
        label=f"suggested: {test.suggestion:.2g}",
    )
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.set_title(title, loc="left", fontsize=12, color=INK, weight="bold", parse_math=False)
    axes.set_xlabel("learning rate (--optim.lr)", color=FAINT)
    axes.set_ylabel("training loss", color=FAINT)
    axes.tick_params(colors=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.legend(frameon=False, labelcolor=INK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    return path
