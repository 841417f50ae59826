"""How to train your ViT? Data, augmentation, and regularization in vision transformers. Steiner et al., TMLR 2022,
arXiv 2106.10270: 7 levels of augmentation, with or without regularisation, two weight decays.

A level is a recipe; `--dropout 0.1 --drop-path 0.1` adds the regularisation, `--optim.weight-decay 0.03` is the other
decay, and `--model` another size. Expected figures are read from Figure 4, for S/16 on images held out of ImageNet-1k's
training set. 10,000 steps of 4,096 images are 32 epochs of it. Differences: the first moment is kept in float32, and
RandAugment's operations are not TensorFlow's.
"""

from __future__ import annotations

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def none(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """Only crops and flips.

    Command   vitrail train imagenet_folder --recipe augreg/none
    Expected  71 % top-1, 76 % with regularisation (not re-run here).
    """
    return _level(0, 0, 0.0, regularisation, weight_decay)


def light1(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 0, which still equalises and inverts.

    Command   vitrail train imagenet_folder --recipe augreg/light1
    Expected  77 % top-1, 79 % with regularisation (not re-run here).
    """
    return _level(2, 0, 0.0, regularisation, weight_decay)


def light2(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 10, MixUp 0.2.

    Command   vitrail train imagenet_folder --recipe augreg/light2
    Expected  79 % top-1, 80 % with regularisation (not re-run here).
    """
    return _level(2, 10, 0.2, regularisation, weight_decay)


def medium1(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 15, MixUp 0.2.

    Command   vitrail train imagenet_folder --recipe augreg/medium1
    Expected  81 % top-1, 79 % with regularisation (not re-run here).
    """
    return _level(2, 15, 0.2, regularisation, weight_decay)


def medium2(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 15, MixUp 0.5: the best for S/16, and the authors' choice for B/16 and L/16.

    Command   vitrail train imagenet_folder --recipe augreg/medium2
    Expected  82 % top-1, 79 % with regularisation (not re-run here).
    """
    return _level(2, 15, 0.5, regularisation, weight_decay)


def strong1(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 20, MixUp 0.5 (heavy1 in the figure).

    Command   vitrail train imagenet_folder --recipe augreg/strong1
    Expected  80 % top-1, 77 % with regularisation (not re-run here).
    """
    return _level(2, 20, 0.5, regularisation, weight_decay)


def strong2(regularisation: float = 0.0, weight_decay: float = 0.1) -> Recipe:
    """RandAugment of strength 20, MixUp 0.8 (heavy2 in the figure).

    Command   vitrail train imagenet_folder --recipe augreg/strong2
    Expected  80 % top-1, 77 % with regularisation (not re-run here).
    """
    return _level(2, 20, 0.8, regularisation, weight_decay)


def _level(operations: int, strength: int, mixup: float, regularisation: float, weight_decay: float) -> Recipe:
    """`regularisation` is the rate of dropout and the largest rate of stochastic depth: 0 or 0.1."""
    return Recipe(
        model="vit_small_patch16_224",
        data=Data(batch_size=4096, workers=8, in_chans=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        augment=Augment(crop_scale=(0.05, 1.0), rand_augment=operations, rand_augment_magnitude=strength, mixup=mixup),
        optim=Optim(lr=1e-3, lr_batch=4096, weight_decay=weight_decay, clip_grad=1.0),
        schedule=Schedule(epochs=300, warmup_epochs=32.0),
        loss="bce",
        head_bias=-6.9,
        dropout=regularisation,
        drop_path=regularisation,
    )
