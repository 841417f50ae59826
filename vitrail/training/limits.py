"""What the numbers of a recipe may be: a wrong one is refused in one sentence, before the data are read.

Those of the images (mean, crop, augmentation) are checked where the transforms are made.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from vitrail.errors import UserError
from vitrail.recipe import Recipe

Rule = tuple[Callable[[float], bool], str]

FROM_0: Rule = (lambda x: x >= 0, "0 or more")
FROM_1: Rule = (lambda x: x >= 1, "1 or more")
ABOVE_0: Rule = (lambda x: x > 0, "above 0")
SHARE: Rule = (lambda x: 0 <= x <= 1, "between 0 and 1")
BELOW_1: Rule = (lambda x: 0 <= x < 1, "0 or more and below 1")
SEED: Rule = (lambda x: 0 <= x < 2**63, "0 or more and below 2^63")

RULES = {
    "data.img_size": FROM_1,
    "data.in_chans": FROM_1,
    "data.batch_size": FROM_1,
    "data.workers": FROM_0,
    "data.limit": FROM_1,
    "augment.mixup": FROM_0,
    "augment.cutmix": FROM_0,
    "optim.lr": FROM_0,
    "optim.lr_batch": FROM_1,
    "optim.weight_decay": FROM_0,
    "optim.betas": BELOW_1,
    "optim.clip_grad": ABOVE_0,
    "optim.accumulate": FROM_1,
    "schedule.epochs": FROM_1,
    "schedule.warmup_epochs": FROM_0,
    "schedule.min_lr": SHARE,
    "label_smoothing": SHARE,
    "drop_path": BELOW_1,
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
