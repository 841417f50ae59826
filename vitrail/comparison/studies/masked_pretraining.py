"""Masked pre-training: a ViT that has first guessed masked patches learns its task better than one from scratch.

Claim     An Image is Worth 16x16 Words. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, section 4.6 and appendix
          B.1.2: masked patch prediction needs no labels and is better than training from scratch.
Figures   ViT-B/16 fine-tuned on ImageNet: 79.9, some 2 points above scratch and 4 below supervised pre-training;
          pre-training on ImageNet alone gains about as much as on JFT-300M.
Compared  pre-training for as many epochs as the scale has, half of the patches corrupted, their mean colour asked for,
          on the same images without their labels, and then fine-tuning for as many; from scratch for the epochs of the
          fine-tuning; and, at equal compute, from scratch for all epochs.
Seen      if the pre-trained model is above the one from scratch with the same fine-tuning epochs. Equal compute is
          told beside it.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}

CONTRASTS = (
    Contrast("pre-trained above scratch, equal fine-tuning", above("pretrained", "scratch")),
    Contrast("pre-trained above scratch, equal compute", above("pretrained", "scratch_longer"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """From scratch, the pre-training, what follows it, and scratch for as long as both."""
    vit = scale.models.vit
    recipe = scale.recipe(vit)
    return (
        Arm("scratch", "from scratch", recipe),
        Arm("pretraining", "masked patch prediction", replace(recipe, task="masked_patches", label_smoothing=0.0)),
        Arm("pretrained", "then fine-tuned", recipe, starts_from="pretraining"),
        Arm("scratch_longer", "from scratch, all epochs", scale.recipe(vit, epochs=2 * scale.epochs)),
    )
