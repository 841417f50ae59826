"""Resolution: train small, then go on for a little while with larger images.

Claim     Fixing the train-test resolution discrepancy. Touvron et al., NeurIPS 2019, arXiv 1906.06423; for transformers
          ViT (arXiv 2010.11929, section 3.2) and DeiT (arXiv 2012.12877, section 4): fine-tuning at a higher
          resolution, with positions resized, is better than staying low, and cheaper than training high.
Figures   DeiT on ImageNet, 224 and then 384 pixels: B 81.8 to 83.1, B distilled 83.4 to 84.5.
Compared  three quarters of the side; from there on to the full side for a third of the epochs, at a third of the
          learning rate; and, each with the compute of both together, low for longer and high from the start.
          Low images are the same images made smaller, and are scored as such; the patch size stays.
Seen      if going on at the higher resolution is above stopping at the lower one. Equal compute is told beside it.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above

SCALES = {"smoke": SMOKE, "cpu": replace(CPU, epochs=24), "gpu": GPU}

CONTRASTS = (
    Contrast("low, then high above low", above("low_high", "low")),
    Contrast("low, then high above low longer, equal compute", above("low_high", "low_longer"), decides=False),
    Contrast("low, then high above high, equal compute", above("low_high", "high"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Low, then high; low for longer; high from the start."""
    from vitrail.comparison.cost import flops
    from vitrail.models import create_model

    small = replace(scale, img_size=scale.img_size * 3 // 4)
    vit = scale.models.vit
    ratio = flops(create_model(vit, img_size=small.img_size), small.img_size) / flops(create_model(vit), scale.img_size)
    after = scale.epochs / 3
    going_on = replace(scale, lr=scale.lr / 3).recipe(vit, epochs=after)
    return (
        Arm("low", f"{small.img_size} pixels", small.recipe(vit)),
        Arm("low_high", f"then {scale.img_size} pixels", going_on, starts_from="low"),
        Arm("low_longer", f"{small.img_size} pixels, longer", small.recipe(vit, epochs=scale.epochs + after / ratio)),
        Arm("high", f"{scale.img_size} pixels from the start", scale.recipe(vit, epochs=scale.epochs * ratio + after)),
    )
