"""What the numbers of a recipe may be: a wrong one is refused in one sentence, before the data are read.

Those of the images (mean, crop, augmentation) are checked where the transforms are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter

from vitrail.errors import UserError
from vitrail.recipe import Recipe, Schedule

Rule = tuple[Callable[[float], bool], str]

FINITE: Rule = (math.isfinite, "a finite number")
FROM_0: Rule = (lambda x: x >= 0, "0 or more")
FROM_1: Rule = (lambda x: x >= 1, "1 or more")
ABOVE_0: Rule = (lambda x: x > 0, "above 0")
SHARE: Rule = (lambda x: 0 <= x <= 1, "between 0 and 1")
SHARE_ABOVE_0: Rule = (lambda x: 0 < x <= 1, "above 0 and at most 1")
BELOW_1: Rule = (lambda x: 0 <= x < 1, "0 or more and below 1")
SEED: Rule = (lambda x: 0 <= x < 2**63, "0 or more and below 2^63")

RULES = {
    "data.img_size": FROM_1,
    "data.in_chans": FROM_1,
    "data.batch_size": FROM_1,
    "data.workers": FROM_0,
    "data.limit": FROM_1,
    "data.repeats": FROM_1,
    "augment.mixup": FROM_0,
    "augment.cutmix": FROM_0,
    "augment.mix_prob": SHARE,
    "optim.lr": FROM_0,
    "optim.lr_batch": FROM_1,
    "optim.weight_decay": FROM_0,
    "optim.betas": BELOW_1,
    "optim.clip_grad": ABOVE_0,
    "optim.accumulate": FROM_1,
    "optim.rho": FROM_0,
    "optim.layer_decay": SHARE_ABOVE_0,
    "optim.head_lr": ABOVE_0,
    "optim.head_weight_decay": FROM_0,
    "schedule.epochs": FROM_1,
    "schedule.warmup_epochs": FROM_0,
    "schedule.min_lr": SHARE,
    "schedule.timescale_epochs": ABOVE_0,
    "schedule.cooldown_epochs": FROM_0,
    "schedule.frozen_epochs": FROM_0,
    "distill.alpha": SHARE,
    "distill.tau": ABOVE_0,
    "masked.share": SHARE_ABOVE_0,
    "head_bias": FINITE,
    "label_smoothing": SHARE,
    "drop_path": BELOW_1,
    "dropout": BELOW_1,
    "patch_drop": BELOW_1,
    "ema": BELOW_1,
    "seed": SEED,
    "checkpoint_minutes": FROM_0,
}


def check_numbers(recipe: Recipe) -> None:
    """Raises UserError for the first number of a recipe that means nothing, NaN included. None is always allowed."""
    for field, (holds, words) in RULES.items():
        value = attrgetter(field)(recipe)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not holds(number):
                raise UserError(f"--{field.replace('_', '-')} is {number}; it must be {words}")
    _check_epochs(recipe.schedule)


def _check_epochs(schedule: Schedule) -> None:
    """A warm-up may be longer than the run, which is then a trial of its beginning. Frozen epochs and a cooldown may
    not: a run that is all cooldown never has its peak learning rate, and says nothing of the recipe."""
    frozen, cooldown = schedule.frozen_epochs, schedule.cooldown_epochs
    if frozen > schedule.epochs:
        raise UserError(f"--schedule.frozen-epochs is {frozen}, more than the run's {schedule.epochs} epochs")
    if cooldown and schedule.name in ("cosine", "linear"):
        raise UserError(
            f"--schedule.cooldown-epochs is {cooldown:g}, and {schedule.name} falls by itself; set it to 0, or "
            f"--schedule.name to rsqrt or constant"
        )
    if cooldown > schedule.epochs - frozen:
        raise UserError(
            f"--schedule.cooldown-epochs is {cooldown:g}, more than the {schedule.epochs - frozen} epochs of the "
            f"schedule; take a shorter one"
        )
