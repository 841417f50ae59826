"""Pooling: how the tokens are read out at the top, by a class token, their mean or a query, hardly matters.

Claim     ViT (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, appendix D.3): the mean does as well as the class token,
          with another learning rate. Scaling vision transformers (Zhai et al., CVPR 2022, arXiv 2106.04560, section 3):
          the mean and attention pooling perform alike. Better plain ViT baselines (arXiv 2205.01580): the mean is
          slightly better. Raghu et al. (NeurIPS 2021, arXiv 2108.08810): averaged tokens stay less at their place.
Figures   Better plain ViT, S/16 on ImageNet, 90 epochs, the mean: 76.5. The others print curves, no numbers.
Compared  one small ViT with each, at the same learning rate, and the mean at a third of it.
Seen      if the mean and attention pooling are each at most 2 points from the class token, above and below.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}

CONTRASTS = (
    Contrast("the mean at most 2 points below the token", above("mean", "token"), margin=2.0),
    Contrast("the token at most 2 points below the mean", above("token", "mean"), margin=2.0),
    Contrast("a query at most 2 points below the token", above("query", "token"), margin=2.0),
    Contrast("the token at most 2 points below a query", above("token", "query"), margin=2.0),
    Contrast("the mean above the token", above("mean", "token"), decides=False),
    Contrast("the mean: a third of the rate above the whole", above("mean_slow", "mean"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Three ways to read out, one of them at two learning rates."""
    mean = scale.recipe("vit_nano_patch8_gap_32")
    slow = replace(mean, optim=replace(mean.optim, lr=scale.lr / 3))
    return (
        Arm("token", "class token", scale.recipe("vit_nano_patch8_32")),
        Arm("mean", "mean of the patches", mean),
        Arm("mean_slow", "mean of the patches, a third of the rate", slow),
        Arm("query", "a learned query (MAP)", scale.recipe("vit_nano_patch8_map_32")),
    )
