"""Occlusion: a transformer bears missing and shuffled patches, and corrupted images, better than a CNN.

Claim     Intriguing properties of vision transformers. Naseer et al., NeurIPS 2021, arXiv 2105.10497: highly robust to
          occlusion, less to the loss of spatial structure than thought. Against it: Pinto et al., ECCV 2022, arXiv
          2207.11347, no clear winner between the kinds once training is the same; Wang et al., ICLR 2023, arXiv
          2206.03452, not attention but training and patches make the difference.
Figures   ImageNet, half of the patches dropped: DeiT-S about 70 % right, ResNet-50 about 0.1 % (recalled).
Compared  a small ViT and a small convolutional network, trained alike: points lost when half of 16 square patches are
          black, when 4 x 4 patches are shuffled, and, mean over the 15 corruptions, at severity 3. The patches are
          those of the ViT.
Seen      if the convolutional network loses more points by missing patches than the ViT.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, View, above, minus

if TYPE_CHECKING:
    from vitrail.run import Run

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}

CELLS = 4
"""Patches a side: those of an 8-pixel ViT on 32 pixels."""


def black(run: Run, source: Any) -> Any:
    """Right answers with half of the patches black, other patches in every image."""
    from vitrail.comparison.studies.asking import right

    return 100.0 * right(run, source, change=_changed("black"))


def shuffled(run: Run, source: Any) -> Any:
    """Right answers with all patches in another order."""
    from vitrail.comparison.studies.asking import right

    return 100.0 * right(run, source, change=_changed("shuffled"))


def corrupted(run: Run, source: Any) -> Any:
    """The mean of the right answers over the 15 corruptions at severity 3."""
    import numpy as np

    from vitrail.comparison.corruptions import CORRUPTIONS
    from vitrail.comparison.studies.asking import right

    return 100.0 * np.mean([right(run, source, change=_corruption(name)) for name in CORRUPTIONS], axis=0)


def _changed(how: str) -> Any:
    """A change of a uint8 image (C, H, W), random, but the same for the same image."""
    from vitrail.comparison.occlusion import deal, drop, random_drop, shuffled

    def change(image: Any) -> Any:
        seed = zlib.crc32(image.numpy().tobytes())
        if how == "black":
            return drop(image[None], random_drop(CELLS, 5, seed))[0]
        return shuffled(image[None], deal(CELLS, seed))[0]

    return change


def _corruption(name: str) -> Any:
    """One corruption at severity 3, with the randomness of the image's own bytes."""
    from vitrail.comparison.robustness_conditions import corrupted

    return lambda image: corrupted(image, name, 3, zlib.crc32(image.numpy().tobytes()))


VIEWS = {
    "black": View("half of the patches black", "points", black),
    "shuffled": View("patches shuffled", "points", shuffled),
    "corrupted": View("15 corruptions, severity 3", "points", corrupted),
}


def _lost(arm: str, view: str) -> dict[str, float]:
    return above(arm, f"{arm}/{view}")


CONTRASTS = (
    Contrast("half black: the CNN loses more", minus(_lost("cnn", "black"), _lost("vit", "black"))),
    Contrast("shuffled: the CNN loses more", minus(_lost("cnn", "shuffled"), _lost("vit", "shuffled")), decides=False),
    Contrast(
        "corrupted: the CNN loses more", minus(_lost("cnn", "corrupted"), _lost("vit", "corrupted")), decides=False
    ),
    Contrast("half black: the ViT above the CNN", above("vit/black", "cnn/black"), decides=False),
    Contrast("corrupted: the ViT above the CNN", above("vit/corrupted", "cnn/corrupted"), decides=False),
    Contrast("untouched: the ViT above the CNN", above("vit", "cnn"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """The two that `data_hunger` trains on the whole scale's images."""
    cnn = scale.recipe(scale.models.cnn)
    return (
        Arm("vit", "ViT", scale.recipe(scale.models.vit)),
        Arm("cnn", "CNN", replace(cnn, optim=replace(cnn.optim, lr=5 * scale.lr))),
    )
