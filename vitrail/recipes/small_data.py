"""Vision transformer for small-size datasets. Lee, Lee and Song, 2021, arXiv 2112.13492, and the authors' release:
shifted patches and attention with a learned temperature, trained from scratch on 32 x 32 images.

The release counts 100 epochs of three passes each over the images (its repeated augmentation repeats nothing): 300
passes here, 30 of them warm-up. Differences: norms, biases, tokens and positions do not decay (there all do), and the
result is that of the last epoch (there the best on the test images).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def small_data() -> Recipe:
    """SL-ViT on CIFAR-10.

    Command   vitrail train cifar10 --recipe small_data
    Expected  94.53 % top-1 on the test images (the authors' release; not re-run here).
    """
    return Recipe(
        model="sl_vit_patch4_32",
        data=Data(batch_size=128, in_chans=3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augment=Augment(
            crop="padded",
            crop_padding=4,
            auto_augment="cifar10",
            erasing=0.25,
            erasing_scale=(0.02, 0.4),
            erasing_fill="mean",
            mixup=1.0,
            cutmix=1.0,
            mix_prob=0.5,
        ),
        optim=Optim(lr=1e-3, lr_batch=128, weight_decay=0.05),
        schedule=Schedule(epochs=300, warmup_epochs=30.0, min_lr=0.001),
        label_smoothing=0.1,
        drop_path=0.1,
    )


def swin() -> Recipe:
    """SL-Swin on CIFAR-10.

    Command   vitrail train cifar10 --recipe small_data/swin
    Expected  95.93 % top-1 on the test images (the authors' release; not re-run here).
    """
    return replace(small_data(), model="sl_swin_tiny_patch2_window4_32")


def cifar100() -> Recipe:
    """SL-ViT on CIFAR-100.

    Command   vitrail train cifar100 --recipe small_data/cifar100
    Expected  76.92 % top-1 on the test images (the authors' release; not re-run here).
    """
    return _on("cifar10", (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def svhn() -> Recipe:
    """SL-ViT on the house numbers of SVHN, flipped too.

    Command   vitrail train svhn --recipe small_data/svhn
    Expected  97.79 % top-1 on the test images (the authors' release; not re-run here).
    """
    return _on("svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


def tiny_imagenet() -> Recipe:
    """SL-ViT on Tiny-ImageNet, 200 classes at 64 x 64.

    Command   vitrail train tiny_imagenet_folder --recipe small_data/tiny_imagenet
    Expected  61.07 % top-1 on the validation images (the authors' release; not re-run here).
    """
    recipe = _on("imagenet", (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
    return replace(recipe, model="sl_vit_patch8_64")


def _on(policy: Literal["imagenet", "cifar10", "svhn"], mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    recipe = small_data()
    return replace(
        recipe,
        data=replace(recipe.data, mean=mean, std=std),
        augment=replace(recipe.augment, auto_augment=policy),
    )
