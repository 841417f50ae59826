"""Start from official weights: what few images need."""

from __future__ import annotations

from dataclasses import replace

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def finetune() -> Recipe:
    """AugReg's ViT-S/16 (21k, then 1k) with a new head, all layers trained gently.

    Command   vitrail train ./photos --recipe finetune
    Expected  depends on the images; a few hundred a class are usually enough for good answers.
    """
    return Recipe(
        model="vit_small_patch16_224",
        pretrained=True,
        data=Data(batch_size=32),
        augment=Augment(crop_scale=(0.35, 1.0), color_jitter=0.2),
        optim=Optim(lr=1e-4, lr_batch=64, weight_decay=0.05, clip_grad=1.0),
        schedule=Schedule(epochs=20, warmup_epochs=1.0),
        label_smoothing=0.1,
        drop_path=0.1,
    )


def layer_decay() -> Recipe:
    """Lower layers, which need little change, learn more slowly; strong augmentation, as for thousands of images.

    The settings of MAE's release (He et al., 2022, arXiv 2111.06377), where layer_decay is 0.65 for B and 0.75 for L.

    Command   vitrail train ./photos --recipe finetune/layer_decay
    Expected  depends on the images; 83.6 % top-1 on ImageNet-1k for MAE's own ViT-B in 100 epochs.
    """
    return replace(
        finetune(),
        augment=Augment(
            rand_augment=2,
            rand_augment_magnitude=9,
            rand_augment_std=0.5,
            rand_augment_prob=0.5,
            erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
        ),
        optim=Optim(lr=5e-4, lr_batch=256, weight_decay=0.05, layer_decay=0.75),
        schedule=Schedule(epochs=50, warmup_epochs=5.0),
    )


def frozen_first() -> Recipe:
    """Only the new head learns for two epochs, ten times as fast as the rest does after them.

    Command   vitrail train ./photos --recipe finetune/frozen_first
    Expected  depends on the images; the pretrained layers never see the gradients of a random head.
    """
    recipe = finetune()
    return replace(
        recipe,
        optim=replace(recipe.optim, head_lr=10.0),
        schedule=replace(recipe.schedule, frozen_epochs=2),
    )


def high_resolution() -> Recipe:
    """The same at 384 pixels, where details matter: more than three times the work.

    Command   vitrail train ./photos --recipe finetune/high_resolution
    Expected  depends on the images; the official weights have 83.8 % top-1 on ImageNet-1k, against 81.4 % at 224.
    """
    recipe = finetune()
    return replace(recipe, model="vit_small_patch16_384", data=replace(recipe.data, crop_pct=1.0))
