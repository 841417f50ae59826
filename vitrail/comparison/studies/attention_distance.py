"""Attention distance: the first layers have heads that look near beside heads that look far, the last only far ones.

Claim     ViT. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, figure 7 and appendix D.7; Raghu et al., NeurIPS 2021,
          arXiv 2108.08810, figures 3 and 4: pre-trained on enough images, the lowest layers mix local and global heads
          and the highest are global; trained on ImageNet alone, large models do not learn the local ones.
Figures   ViT-L/16 on JFT, heads of the lowest layers from about 20 to above 100 pixels of 224, of the two highest all
          near 110, where attention that is the same everywhere would be (recalled).
Compared  the heads of a small ViT with 8 x 8 patches, after training; a hundred percent is the mean distance of
          attention that is the same everywhere. A few thousand images are far from the claim's "enough".
Seen      if heads differ more in the first layer than in the last, and the last layer looks farther than the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, View, above

if TYPE_CHECKING:
    from vitrail.comparison.studies.findings import Shown
    from vitrail.run import Run

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}

PERCENT = "% of uniform"


def heads(run: Run, source: Any) -> list[Any]:
    """Layer by layer, how far each head looks on test images, in percent of uniform attention's distance: (h,) each."""
    from vitrail.comparison.studies.asking import batches
    from vitrail.interpretability.distance import attention_statistics

    found = attention_statistics(run.model, batches(run, source, most=256))
    return [100 * far / even for far, even in zip(found.distance, found.uniform_distance, strict=True)]


VIEWS = {
    "first_mean": View("first layer, mean of heads", PERCENT, lambda run, source: [heads(run, source)[0].mean()]),
    "last_mean": View("last layer, mean of heads", PERCENT, lambda run, source: [heads(run, source)[-1].mean()]),
    "first_spread": View("first layer, farthest less nearest", PERCENT, lambda run, source: [spread(run, source, 0)]),
    "last_spread": View("last layer, farthest less nearest", PERCENT, lambda run, source: [spread(run, source, -1)]),
}


def spread(run: Run, source: Any, layer: int) -> float:
    """How much farther the farthest head of a layer looks than its nearest."""
    far = heads(run, source)[layer]
    return float(far.max() - far.min())


CONTRASTS = (
    Contrast("heads differ more in the first layer", above("vit/first_spread", "vit/last_spread"), unit=PERCENT),
    Contrast("the last layer looks farther", above("vit/last_mean", "vit/first_mean"), unit=PERCENT),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """One ViT, with patches small enough to tell near from far."""
    return (Arm("vit", "ViT, 8 x 8 patches", scale.recipe("vit_nano_patch4_32")),)


def draw(shown: Shown) -> bytes:
    """A dot a head, layer by layer, for every seed."""
    from vitrail.comparison.studies.pictures import Dots, dots
    from vitrail.run import open_data

    runs = [shown.run("vit", seed) for seed in range(len(shown.asked["vit"]))]
    found = [Dots(f"seed {seed}", heads(run, open_data(run.recipe))) for seed, run in enumerate(runs)]
    return dots("How far each head looks, a dot a head", found, "layer", "distance, % of uniform attention's")
