"""A recipe as people tell it: what was learned, from what, for how long, with which tricks."""

from __future__ import annotations

from typing import Any

from vitrail.recipe import Augment, Optim, Recipe, Schedule


def in_words(recipe: Recipe) -> dict[str, str]:
    """A heading and a sentence for each part of a resolved recipe."""
    size, parts = recipe.data.batch_size, recipe.optim.accumulate
    rows = {
        "Task": _task(recipe),
        "Started from": recipe.initial_checkpoint or ("official weights" if recipe.pretrained else "random weights"),
        "Teacher": _teacher(recipe),
        "Length": _length(recipe.schedule),
        "Optimiser": _optimiser(recipe.optim),
        "Batch": f"{size} images" + (f" in {parts} parts" if parts > 1 else ""),
        "Augmentation": _augmentation(recipe),
        "Regularisation": _regularisation(recipe),
        "Precision": f"{recipe.precision}, seed {recipe.seed}" + (", sharded over processes" if recipe.sharded else ""),
    }
    return {heading: words for heading, words in rows.items() if words}


def plain(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, list | tuple):
        return " to ".join(plain(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _task(recipe: Recipe) -> str:
    if recipe.task == "masked_patches":
        return f"predict the {recipe.masked.target} of {recipe.masked.share:.0%} of the patches, which are corrupted"
    several = recipe.task == "multilabel"
    loss = "binary cross-entropy" if several or recipe.loss == "bce" else "cross-entropy"
    weights = f", class weights {recipe.class_weights}" if recipe.class_weights != "none" else ""
    return f"{'several labels' if several else 'one class'} an image, {loss}{weights}"


def _teacher(recipe: Recipe) -> str:
    distill = recipe.distill
    if not distill.teacher:
        return ""
    labels = "its most likely class" if distill.kind == "hard" else f"its probabilities at temperature {distill.tau:g}"
    return f"{distill.teacher}: {labels}, {distill.alpha:.0%} of the loss"


def _length(schedule: Schedule) -> str:
    words = [f"{schedule.epochs} epochs"]
    if schedule.frozen_epochs:
        words.append(f"in the first {schedule.frozen_epochs} only the last layer learns")
    decay = {
        "cosine": "cosine decay",
        "linear": "linear decay",
        "rsqrt": "1 / square root decay",
        "constant": "a constant rate",
    }
    words.append(f"{schedule.warmup_epochs:g} warm-up, then {decay[schedule.name]}")
    if schedule.cooldown_epochs:
        words.append(f"the last {schedule.cooldown_epochs:g} cooling down")
    return ", ".join(words)


def _optimiser(optim: Optim) -> str:
    words = [f"{optim.name}, peak learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}"]
    if optim.head_lr != 1:
        words.append(f"the last layer {optim.head_lr:g} times as fast")
    if optim.layer_decay != 1:
        words.append(f"each layer {optim.layer_decay:g} of the one above")
    if optim.rho:
        words.append(f"sharpness-aware within {optim.rho:g}")
    if optim.clip_grad:
        words.append(f"gradients clipped at {optim.clip_grad:g}")
    return ", ".join(words)


def _regularisation(recipe: Recipe) -> str:
    words = [f"label smoothing {recipe.label_smoothing:g}", f"drop path {recipe.drop_path:g}"]
    if recipe.dropout:
        words.append(f"dropout {recipe.dropout:g}")
    words.append(f"moving average of weights {recipe.ema:g}" if recipe.ema else "no moving average of weights")
    return ", ".join(words)


def _augmentation(recipe: Recipe) -> str:
    augment = recipe.augment
    words = [_crop(augment)]
    if augment.auto_augment != "none":
        words.append(f"AutoAugment for {augment.auto_augment}")
    if augment.rand_augment:
        words.append(f"RandAugment {augment.rand_augment} x magnitude {augment.rand_augment_magnitude}")
    for name in ("flip", "rotate", "color_jitter", "erasing", "mixup", "cutmix"):
        if value := getattr(augment, name):
            words.append(f"{name.replace('_', ' ')} {value:g}")
    if recipe.data.repeats > 1:
        words.append(f"each image {recipe.data.repeats} times in a row")
    if recipe.data.balanced:
        words.append("classes equally often")
    return ", ".join(words)


def _crop(augment: Augment) -> str:
    return {
        "resized": f"random crop of {plain(augment.crop_scale)} of the area",
        "padded": f"random shift, at most {augment.crop_padding} px",
        "none": "no random crop",
    }[augment.crop]
