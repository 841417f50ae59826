"""Start from official weights: what few images need."""

from __future__ import annotations

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
