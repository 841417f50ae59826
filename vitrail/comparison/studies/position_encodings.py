"""Position encodings: what knows a place by its neighbours bears another resolution better than a learned table.

Claim     CPVT. Chu et al., ICLR 2023, arXiv 2102.10882, section 5: without any fine-tuning, conditional positions gain
          from larger images, where a learned table, resized, loses.
Figures   ImageNet, trained at 224, scored at 384: DeiT-Ti 72.2 to 71.2, CPVT-Ti 72.4 to 73.2; S 79.9 to 78.1 and 79.9
          to 80.4.
Compared  a learned table (ViT), sines and cosines (SimpleViT, which also averages its tokens), a convolution among the
          tokens (CPVT's PEG), and relative offsets within windows (Swin). Trained at 32 pixels, then scored, without
          another step, on the same images made half as large again and three quarters as large.
Seen      if the learned table loses more than the PEG at the larger size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, View, above, minus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitrail.comparison.studies.findings import Shown
    from vitrail.data.sources import Source
    from vitrail.run import Run

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}

LARGER, SMALLER = 1.5, 0.75


def _at(share: float) -> View:
    def take(run: Run, source: Source) -> NDArray[np.floating]:
        from vitrail.comparison.studies.asking import right

        return 100.0 * right(run, source, img_size=round(share * (run.recipe.data.img_size or 0)))

    return View(f"accuracy at {share:g} times the side", "points", take)


VIEWS = {"larger": _at(LARGER), "smaller": _at(SMALLER)}


def _loses(arm: str, view: str) -> dict[str, float]:
    return above(arm, f"{arm}/{view}")


CONTRASTS = (
    Contrast("larger: a table loses more than the PEG", minus(_loses("learned", "larger"), _loses("peg", "larger"))),
    Contrast(
        "larger: a table loses more than sines",
        minus(_loses("learned", "larger"), _loses("sines", "larger")),
        decides=False,
    ),
    Contrast(
        "larger: a table loses more than offsets",
        minus(_loses("learned", "larger"), _loses("relative", "larger")),
        decides=False,
    ),
    Contrast(
        "smaller: a table loses more than the PEG",
        minus(_loses("learned", "smaller"), _loses("peg", "smaller")),
        decides=False,
    ),
    Contrast("larger: the PEG gains", above("peg/larger", "peg"), decides=False),
    Contrast("at 32 pixels: the PEG above a table", above("peg", "learned"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Four ways to say where a patch is."""
    return (
        Arm("learned", "learned table (ViT)", scale.recipe("vit_nano_patch8_32")),
        Arm("sines", "sines and cosines (SimpleViT)", scale.recipe("simple_vit_nano_patch8_32")),
        Arm("peg", "conditional (CPVT)", scale.recipe("cpvt_nano_patch8_32")),
        Arm("relative", "relative offsets (Swin)", scale.recipe("swin_nano_patch4_window4_32")),
    )


def draw(shown: Shown) -> bytes:
    """Accuracy over the side at which the models are scored."""
    from vitrail.comparison.studies.pictures import Line, curves

    side = shown.arms[0].recipe.data.img_size or 0
    lines = [
        Line(
            arm.about,
            [SMALLER * side, side, LARGER * side],
            [shown.asked[key].mean(axis=1) for key in (f"{arm.name}/smaller", arm.name, f"{arm.name}/larger")],
        )
        for arm in shown.arms
    ]
    return curves(f"Trained at {side} pixels, scored at others", lines, "side, pixels", "accuracy, %", log=False)
