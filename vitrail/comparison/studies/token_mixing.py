"""Token mixing: attention is not needed; a layer that mixes tokens by learned weights does as well.

Claim     MLP-Mixer. Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601: competitive with ViT, neither attention nor
          convolution is necessary. ResMLP. Touvron et al., arXiv 2105.03404. gMLP. Liu et al., NeurIPS 2021, arXiv
          2105.08050: MLPs with a gate do as well as transformers.
Figures   ImageNet, of about ViT-S's cost, from scratch: ResMLP-S24 79.4 and gMLP-S 79.6 beside DeiT-S 79.8; Mixer-B/16
          from ImageNet-21k 80.6, from scratch 76.4.
Compared  a small ViT and the three, of about the same cost, on the same images for as many epochs; each starts as its
          paper says.
Seen      if each of the three is at most 2 points below the ViT.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}

CONTRASTS = (
    Contrast("Mixer at most 2 points below the ViT", above("mixer", "vit"), margin=2.0),
    Contrast("ResMLP at most 2 points below the ViT", above("resmlp", "vit"), margin=2.0),
    Contrast("gMLP at most 2 points below the ViT", above("gmlp", "vit"), margin=2.0),
    Contrast("gMLP above Mixer", above("gmlp", "mixer"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Attention, and three other ways for tokens to meet."""
    return (
        Arm("vit", "ViT, attention", scale.recipe("vit_nano_patch8_32")),
        Arm("mixer", "Mixer, an MLP across tokens", scale.recipe("mixer_nano8_32")),
        Arm("resmlp", "ResMLP, one layer across tokens", scale.recipe("resmlp_nano8_32")),
        Arm("gmlp", "gMLP, a layer across tokens as a gate", scale.recipe("gmlp_nano8_32")),
    )
