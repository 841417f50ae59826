"""Small data: shifted patches and local attention make a ViT better that learns from few images.

Claim     Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: shifted patch
          tokenization (SPT) and locality self-attention (LSA) give a ViT the locality that it lacks.
Figures   CIFAR-10 from scratch (50,000 images, 100 epochs, counted as three passes each): ViT 93.58, with both 94.53;
          Tiny-ImageNet 57.07 and 61.07; SVHN 97.82 and 97.79.
Compared  the plain ViT and the one with SPT and LSA: same width, depth, heads, epochs and augmentation. The patches of
          the second see five shifted copies of the image: 1 % more compute at pico size, a fifth more at nano.
Seen      if the ViT with both is above the plain one.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": replace(CPU, epochs=30), "gpu": GPU}

CONTRASTS = (Contrast("SPT and LSA above the plain ViT", above("sl", "plain")),)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Without and with."""
    return (
        Arm("plain", "plain ViT", scale.recipe(scale.models.vit)),
        Arm("sl", "ViT with SPT and LSA", scale.recipe(scale.models.sl_vit)),
    )
