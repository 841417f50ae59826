"""Augmentation: it stands in for data, so it helps, and helps more where there are fewer images.

Claim     How to train your ViT? Steiner et al., TMLR 2022, arXiv 2106.10270: augmentation and regularisation are worth
          about ten times the data; on ImageNet-1k every level helps, on 21k at equal compute hardly any does.
Figures   ImageNet-1k, 300 epochs, levels none / light2 / strong1 without regularisation (read off Figure 4): Ti/16
          72 / 75 / 72, S/16 71 / 79 / 80, B/16 70 / 79 / 80.
Compared  the paper's none (shift and flip, as in all arms), light2 (RandAugment 2 x 10 and MixUp 0.2) and strong1
          (RandAugment 2 x 20 and MixUp 0.5). Each with all images of the scale and with a quarter of them, which are
          then seen four times as often: as many steps for all.
Seen      if light is above none with few images, and gains more there than with many.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, images=10_000)}

FEWER = 4

CONTRASTS = (
    Contrast("few images: light above none", above("light_few", "none_few")),
    Contrast(
        "light gains more with few images than with many",
        {"light_few": 1.0, "none_few": -1.0, "light_many": -1.0, "none_many": 1.0},
    ),
    Contrast("many images: light above none", above("light_many", "none_many"), decides=False),
    Contrast("few images: strong above light", above("strong_few", "light_few"), decides=False),
    Contrast("many images: strong above light", above("strong_many", "light_many"), decides=False),
    Contrast("few images and light above many without", above("light_few", "none_many"), decides=False),
)

LEVELS = {"none": (0, 0, 0.0), "light": (2, 10, 0.2), "strong": (2, 20, 0.5)}
"""RandAugment's operations and their strength, MixUp's alpha."""


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Three levels with few images and with many."""
    made = []
    for size, images, epochs in (
        ("few", scale.images // FEWER, scale.epochs * FEWER),
        ("many", scale.images, scale.epochs),
    ):
        for level, (operations, magnitude, mixup) in LEVELS.items():
            recipe = scale.recipe(scale.models.vit, epochs=epochs)
            augment = replace(recipe.augment, rand_augment=operations, rand_augment_magnitude=magnitude, mixup=mixup)
            words = f"{images:,} images, {level}"
            made.append(Arm(f"{level}_{size}", words, replace(recipe, augment=augment), images=images))
    return tuple(made)
