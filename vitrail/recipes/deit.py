"""DeiT: training data-efficient image transformers. Touvron et al., ICML 2021, arXiv 2012.12877, Table 9 and the
authors' release.

Differences from the release: on one process the three copies of an image stand in one batch (there: on three GPUs),
the schedule moves every step (there: every epoch), the operations of RandAugment are torchvision's, and the average of
the weights is what is saved (there it is kept but not used, and costs nothing: 81.9 against 81.8 in the paper's
ablation). The release trains in half precision: add `--precision bf16` where the hardware has it.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.recipe import Augment, Data, Distill, Optim, Recipe, Schedule


def deit() -> Recipe:
    """DeiT-Ti from scratch, without a teacher.

    Command   vitrail train imagenet_folder --recipe deit
    Expected  72.2 % top-1 on ImageNet-1k (Table 3 of the paper; not re-run here).
    """
    return Recipe(
        model="deit_tiny_patch16_224",
        data=Data(batch_size=1024, workers=8, repeats=3),
        augment=Augment(
            rand_augment=2,
            rand_augment_magnitude=9,
            rand_augment_std=0.5,
            rand_augment_prob=0.5,
            erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
        ),
        optim=Optim(lr=5e-4, lr_batch=512, weight_decay=0.05),
        schedule=Schedule(epochs=300, warmup_epochs=5.0, min_lr=0.01),
        label_smoothing=0.1,
        drop_path=0.1,
        ema=0.99996,
    )


def small() -> Recipe:
    """DeiT-S from scratch.

    Command   vitrail train imagenet_folder --recipe deit/small
    Expected  79.8 % top-1 on ImageNet-1k (Table 3 of the paper; not re-run here).
    """
    return replace(deit(), model="deit_small_patch16_224")


def base() -> Recipe:
    """DeiT-B from scratch.

    Command   vitrail train imagenet_folder --recipe deit/base
    Expected  81.8 % top-1 on ImageNet-1k (Table 3 of the paper; not re-run here).
    """
    return replace(deit(), model="deit_base_patch16_224")


def distilled() -> Recipe:
    """DeiT-Ti with a distillation token, which learns the most likely class of a teacher, `--distill.teacher`.

    The paper's teacher is a RegNetY-16GF with 82.9 %, trained on the same images.

    Command   vitrail train imagenet_folder --recipe deit/distilled --distill.teacher runs/regnet
    Expected  74.5 % top-1 on ImageNet-1k, both heads together (Table 3 of the paper; not re-run here).
    """
    return replace(deit(), model="deit_tiny_distilled_patch16_224", distill=Distill(kind="hard", alpha=0.5))


def at_384() -> Recipe:
    """DeiT-B, trained at 224, goes on at 384 with a small constant learning rate and without stochastic depth.

    Positions are resized. `--initial-checkpoint runs/deit_base/model.safetensors` takes the place of official weights.

    Command   vitrail train imagenet_folder --recipe deit/at_384
    Expected  83.1 % top-1 on ImageNet-1k (Table 3 of the paper; not re-run here).
    """
    recipe = base()
    return replace(
        recipe,
        pretrained=True,
        data=replace(recipe.data, batch_size=512, img_size=384),
        optim=Optim(lr=5e-6, lr_batch=512, weight_decay=1e-8),
        schedule=Schedule(name="constant", epochs=30, warmup_epochs=5.0),
        drop_path=0.0,
    )
