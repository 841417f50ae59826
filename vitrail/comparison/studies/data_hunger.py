"""Data hunger: a transformer needs more images than a convolutional network to reach it.

Claim     ViT. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, section 4.3 and figure 4: on small sets transformers
          overfit more than ResNets of the same cost, on large ones they are ahead, because what convolutions are built
          with, a transformer has to learn from images.
Figures   Pre-training on 9, 30, 90 and 300 million images of JFT, 5-shot ImageNet: ViT-B/32 is far below ResNet-50
          (BiT) at 9 million and above it from 90 million on.
Compared  a small ViT and a small convolutional network of about the same cost, each with a ninth, a third, one and
          three times the scale's images, which are seen nine times, three times, once and a third as often: as many
          steps for all.
Seen      if the convolutional network is ahead with the fewest images and its lead is smaller with the most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above, minus

if TYPE_CHECKING:
    from vitrail.comparison.studies.findings import Shown

SCALES = {"smoke": replace(SMOKE, images=90), "cpu": CPU, "gpu": replace(GPU, images=16_000)}
SIZES = {"ninth": 1 / 9, "third": 1 / 3, "whole": 1.0, "thrice": 3.0}

FEWEST, MOST = above("cnn_ninth", "vit_ninth"), above("cnn_thrice", "vit_thrice")

CONTRASTS = (
    Contrast("fewest images: the CNN above the ViT", FEWEST),
    Contrast("the CNN's lead is smaller with the most", minus(FEWEST, MOST)),
    Contrast("most images: the ViT above the CNN", above("vit_thrice", "cnn_thrice"), decides=False),
    Contrast("the ViT with the most above it with fewest", above("vit_thrice", "vit_ninth"), decides=False),
    Contrast("the CNN with the most above it with fewest", above("cnn_thrice", "cnn_ninth"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """The ViT, then the CNN, from few images to many."""
    found = []
    for kind, name, model, faster in (("vit", "ViT", scale.models.vit, 1), ("cnn", "CNN", scale.models.cnn, 5)):
        for size, share in SIZES.items():
            recipe = scale.recipe(model, epochs=scale.epochs / share)
            recipe = replace(recipe, optim=replace(recipe.optim, lr=faster * scale.lr))  # batch norm bears more
            images = round(scale.images * share)
            found.append(Arm(f"{kind}_{size}", f"{name}, {images:,} images", recipe, images))
    return tuple(found)


def draw(shown: Shown) -> bytes:
    """Accuracy over images."""
    from vitrail.comparison.studies.pictures import Line, curves

    lines = [
        Line(name, [arm.images or 0 for arm in shown.arms if arm.name.startswith(kind)],
             [shown.asked[arm.name].mean(axis=1) for arm in shown.arms if arm.name.startswith(kind)])
        for kind, name in (("vit", "ViT"), ("cnn", "CNN"))
    ]  # fmt: skip
    return curves("Accuracy over training images, as many steps for all", lines, "training images", "accuracy, %")
