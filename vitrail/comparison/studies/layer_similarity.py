"""Layer similarity: a transformer's layers resemble each other from first to last, a ResNet's only within its stages.

Claim     Do vision transformers see like convolutional neural networks? Raghu et al., NeurIPS 2021, arXiv 2108.08810,
          section 3 and figure 1: by CKA, ViT's representations are uniform, a grid of high values between low and high
          layers; those of ResNet fall into stages, with little in common between low and high ones.
Figures   The paper prints pictures, no numbers: ViT-L/16 and H/14 beside ResNet-50 and 152, pre-trained on JFT.
Compared  the residual streams after each block of a small ViT and of ResNet-20, by minibatch CKA without bias (batches
          of 128 test images), mean over the pairs of a block in the first third and one in the last third.
Seen      if that mean is higher for the ViT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.comparison.studies.study import CPU, GPU, NANO, SMOKE, Arm, Contrast, Scale, View, above

if TYPE_CHECKING:
    from vitrail.comparison.studies.findings import Shown
    from vitrail.run import Run

SCALES = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(GPU, models=NANO)}


def matrix(run: Run, source: Any) -> Any:
    """CKA between all blocks, on test images: (L, L)."""
    from vitrail.comparison.studies.asking import batches
    from vitrail.interpretability.similarity import cka

    return cka(run.model, batches(run, source, most=1024, batch_size=128)).values


def first_last(run: Run, source: Any) -> list[float]:
    """The mean over the pairs of a block in the first third and one in the last third."""
    values = matrix(run, source)
    third = len(values) // 3
    return [float(values[:third, -third:].mean())]


def neighbours(run: Run, source: Any) -> list[float]:
    """The mean over the pairs of a block and the next."""
    return [float(matrix(run, source).diagonal(1).mean())]


VIEWS = {
    "first_last": View("first third against last third", "CKA", first_last),
    "neighbours": View("a block against the next", "CKA", neighbours),
}

CONTRASTS = (
    Contrast("first and last third: the ViT above ResNet", above("vit/first_last", "resnet/first_last"), unit="CKA"),
    Contrast(
        "neighbours: the ViT above ResNet",
        above("vit/neighbours", "resnet/neighbours"),
        decides=False,
        unit="CKA",
    ),
    Contrast("accuracy: the ViT above ResNet", above("vit", "resnet"), decides=False),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """A ViT of six blocks and a ResNet of nine, three in each stage."""
    resnet = scale.recipe("resnet20")
    return (
        Arm("vit", "ViT, 8 x 8 patches", scale.recipe("vit_nano_patch4_32")),
        Arm("resnet", "ResNet-20", replace(resnet, optim=replace(resnet.optim, lr=5 * scale.lr))),
    )


def draw(shown: Shown) -> bytes:
    """The two matrices, of the first seed."""
    from vitrail.comparison.studies.pictures import matrices
    from vitrail.run import open_data

    runs = {arm.about: shown.run(arm.name, 0) for arm in shown.arms}
    panels = [(name, matrix(run, open_data(run.recipe))) for name, run in runs.items()]
    return matrices("CKA between the blocks of one network", panels, "block", "block")
