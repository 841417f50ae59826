"""Sharpness: SAM, which looks for flat minima, makes transformers and mixers better that have little data.

Claim     When Vision Transformers Outperform ResNets without Pre-training or Strong Data Augmentations. Chen, Hsieh
          and Gong, ICLR 2022, arXiv 2106.01548: models without a convolution's prior end in sharp minima; minimising
          the largest loss within a radius rho (SAM, Foret et al., ICLR 2021, arXiv 2010.01412) helps them most.
Figures   ImageNet top-1 with crop and flip alone, 300 epochs: ViT-B/16 74.6 to 79.9, Mixer-B/16 66.4 to 77.4; a
          ResNet-152 gains 0.8. A step of SAM costs two.
Compared  AdamW and AdamW with SAM (rho 0.1 for the ViT, 0.15 for the Mixer: the paper's for S/16), with shift and flip
          alone; at equal epochs, and at equal compute: SAM with half of them.
Seen      if SAM is above AdamW at equal epochs, for the ViT and for the Mixer. At equal compute is told beside it.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above
from vitrail.recipe import Recipe

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}

RHO = {"vit": 0.1, "mixer": 0.15}

CONTRASTS = (
    Contrast("ViT: SAM above AdamW, equal epochs", above("vit_sam", "vit_adamw")),
    Contrast("Mixer: SAM above AdamW, equal epochs", above("mixer_sam", "mixer_adamw")),
    Contrast("ViT: SAM above AdamW, equal compute", above("vit_sam_half", "vit_adamw"), decides=False),
    Contrast("Mixer: SAM above AdamW, equal compute", above("mixer_sam_half", "mixer_adamw"), decides=False),
    Contrast(
        "the Mixer gains more than the ViT",
        {"mixer_sam": 1.0, "mixer_adamw": -1.0, "vit_sam": -1.0, "vit_adamw": 1.0},
        decides=False,
    ),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Each model three times: plain, with SAM, with SAM for half the epochs."""

    def sam(recipe: Recipe, rho: float) -> Recipe:
        return replace(recipe, optim=replace(recipe.optim, rho=rho))

    made = []
    for part, words, model in (("vit", "ViT", scale.models.vit), ("mixer", "Mixer", scale.models.mixer)):
        whole, half = scale.recipe(model), scale.recipe(model, epochs=scale.epochs / 2)
        made += [
            Arm(f"{part}_adamw", f"{words}, AdamW", whole),
            Arm(f"{part}_sam", f"{words}, SAM", sam(whole, RHO[part])),
            Arm(f"{part}_sam_half", f"{words}, SAM, half the epochs", sam(half, RHO[part])),
        ]
    return tuple(made)
