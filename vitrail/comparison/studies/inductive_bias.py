"""Inductive bias: with few images a transformer that begins with, or may fall back on, convolution is better.

Claim     hybrids. ViT (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, section 4.4): patches of a small ResNet's map
          are better than patches of pixels at small cost. ConViT (d'Ascoli et al., ICML 2021, arXiv 2103.10697): heads
          that begin as convolutions and may leave that learn from fewer images. CPVT (arXiv 2102.10882) and CvT
          (arXiv 2103.15808): convolutions between tokens, no position embedding.
Figures   ImageNet from scratch, models of ViT-Ti's and S's cost: DeiT 72.2 / 79.9, ConViT 73.1 / 81.3, CPVT (mean)
          74.9 / 81.5; CvT-13, between S and B, 81.6.
Compared  a plain ViT; patches of a strided convolution's map; ConViT; CPVT; CvT; and, to see what is left to gain, a
          convolutional network. Each starts as its paper says, so more than the bias differs; cost is in the table.
Seen      if the convolutional stem and ConViT are both above the plain ViT.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}

CONTRASTS = (
    Contrast("a convolutional stem above plain patches", above("stem", "plain")),
    Contrast("heads that begin as convolutions above plain", above("convit", "plain")),
    Contrast("conditional positions above plain", above("cpvt", "plain"), decides=False),
    Contrast("convolutional projections above plain", above("cvt", "plain"), decides=False),
    Contrast("the convolutional network above the stem", above("cnn", "stem"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """From no bias to nothing but."""
    cnn = scale.recipe(scale.models.cnn)
    cnn = replace(cnn, optim=replace(cnn.optim, lr=5 * scale.lr))  # batch norm bears more
    return (
        Arm("plain", "plain ViT", scale.recipe("vit_nano_patch8_32")),
        Arm("stem", "patches of a convolution's map", scale.recipe("vit_nano_r_s8_p4_32")),
        Arm("convit", "ConViT", scale.recipe("convit_nano_patch8_32")),
        Arm("cpvt", "CPVT, conditional positions", scale.recipe("cpvt_nano_patch8_32")),
        Arm("cvt", "CvT, convolutional projections", scale.recipe("cvt_nano_32")),
        Arm("cnn", "a convolutional network", cnn),
    )
