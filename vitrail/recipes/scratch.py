"""From random weights on one's own images: what `vitrail train DATA` does unless told otherwise. Needs no network."""

from __future__ import annotations

from dataclasses import replace

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def scratch() -> Recipe:
    """A ViT-Ti/16 at 224 from random weights, with the augmentation that keeps a transformer from learning by heart.

    Command   vitrail train ./photos
    Expected  depends on the images; with fewer than some ten thousand of them, `--recipe finetune` does far better.
    """
    return Recipe(
        model="vit_tiny_patch16_224",
        data=Data(batch_size=64),
        augment=Augment(crop_scale=(0.2, 1.0), rand_augment=2, rand_augment_magnitude=7, erasing=0.1),
        optim=Optim(lr=1e-3, lr_batch=256, weight_decay=0.05, clip_grad=1.0),
        schedule=Schedule(epochs=100, warmup_epochs=5.0),
        label_smoothing=0.1,
        drop_path=0.1,
    )


def small_images() -> Recipe:
    """The same for 32 x 32 images: a narrow ViT with 4 x 4 patches, shifted and flipped.

    Command   vitrail train cifar10 --recipe scratch/small_images
    Expected  a small ViT learns slowly without a CNN's prior; `--model resnet18` shows the difference.
    """
    recipe = scratch()
    return replace(
        recipe,
        model="vit_pico_patch4_32",
        data=replace(recipe.data, batch_size=128, img_size=32),
        augment=Augment(crop="padded", crop_padding=4, rand_augment=1, rand_augment_magnitude=5, erasing=0.1),
        schedule=Schedule(epochs=50, warmup_epochs=3.0),
        drop_path=0.05,
    )
