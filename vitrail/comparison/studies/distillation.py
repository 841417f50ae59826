"""Distillation: a convnet teacher makes a small transformer better, most of all through a token of its own.

Claim     DeiT. Touvron et al., ICML 2021, arXiv 2012.12877, section 4 and Table 3: with 1.28 M images, the teacher's
          hard labels are better than its soft ones, and a distillation token makes them better still.
Figures   ImageNet top-1, 300 epochs, Ti / S / B: no teacher 72.2 / 79.8 / 81.8, soft 72.2 / 79.8 / 81.8, hard
          74.3 / 80.9 / 83.0, distillation token 74.5 / 81.2 / 83.4. The teacher, RegNetY-16GF, has 82.9.
Compared  a small DeiT without teacher; with soft labels (temperature 3, a tenth of the loss), with hard ones (half of
          it), and the one with the token (hard, half). One convolutional teacher for each seed, trained on the same
          images for as many epochs, is an arm of its own. What it cost is not in the students' column.
Seen      if the model with the token and the one with hard labels are both above the one without teacher.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, above
from vitrail.recipe import Distill

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}

CONTRASTS = (
    Contrast("distillation token above no teacher", above("token", "none")),
    Contrast("hard labels above no teacher", above("hard", "none")),
    Contrast("soft labels above no teacher", above("soft", "none"), decides=False),
    Contrast("hard labels above soft ones", above("hard", "soft"), decides=False),
    Contrast("the token above hard labels alone", above("token", "hard"), decides=False),
    Contrast("the teacher above its best student", above("teacher", "token"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """No teacher, the teacher, and three ways to listen to it."""
    models = scale.models
    plain, token = scale.recipe(models.deit), scale.recipe(models.deit_distilled)
    soft = replace(plain, distill=Distill(kind="soft", alpha=0.1, tau=3.0))
    hard, both = (replace(one, distill=Distill(kind="hard", alpha=0.5)) for one in (plain, token))
    teacher = scale.recipe(models.cnn)
    teacher = replace(teacher, optim=replace(teacher.optim, lr=5 * scale.lr))  # batch norm bears more
    return (
        Arm("none", "no teacher", plain),
        Arm("teacher", "the teacher, a convnet", teacher),
        Arm("soft", "soft labels", soft, teacher="teacher"),
        Arm("hard", "hard labels", hard, teacher="teacher"),
        Arm("token", "hard labels, distillation token", both, teacher="teacher"),
    )
