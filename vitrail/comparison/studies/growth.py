"""Growth: what a larger picture costs; attention over all patches grows with their square, within windows with their
number.

Claim     Swin. Liu et al., ICCV 2021, arXiv 2103.14030, section 3.2, equations 1 and 2: computing attention over all of
          h w patches costs 4 h w C^2 + 2 (h w)^2 C, in windows of M x M 4 h w C^2 + 2 M^2 h w C: quadratic, and linear.
Figures   The equations: the exponent of the number of pixels tends to 2 and is 1.
Compared  a ViT and a Swin of like cost at the smallest size, at once, twice and four times its side: multiply-adds,
          seconds of a pass of one image without gradients, and bytes kept for the backward pass, with the fused
          attention that is used and with attention spelt out. Exponents are fitted on both logarithms. Nothing is
          trained; a seed is another measurement.
Seen      if the ViT's multiply-adds and seconds have the larger exponents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.comparison.studies.study import CPU, GPU, SMOKE, Arm, Contrast, Scale, View, above

if TYPE_CHECKING:
    from vitrail.comparison.studies.findings import Shown
    from vitrail.run import Run

SCALES = {"smoke": SMOKE, "cpu": replace(CPU, img_size=224), "gpu": replace(GPU, img_size=224)}
SIDES = (1, 2, 4)


@functools.cache
def grown(name: str, side: int) -> Any:
    """The model at `side` pixels, weights at random."""
    from vitrail.models import create_model

    return create_model(name, img_size=side).eval()


def multiply_adds(name: str, side: int) -> float:
    """Of one image."""
    from vitrail.comparison.cost import flops

    return float(flops(grown(name, side), side))


def seconds(name: str, side: int) -> float:
    """Of a pass of one image, without gradients."""
    from vitrail.comparison.cost import images_per_second

    return 1 / images_per_second(grown(name, side), (1, 3, side, side))


def kept(name: str, side: int, *, spelt_out: bool = False) -> float:
    """Bytes that a pass of one image keeps for the backward pass, weights left out."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from vitrail.layers.attention import probing

    model = grown(name, side)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    stores: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        store = tensor.untyped_storage()
        if store.data_ptr() not in weights:
            stores[store.data_ptr()] = store.nbytes()
        return tensor

    images = torch.zeros(1, 3, side, side)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        if spelt_out:
            with probing(lambda _site, weights: weights):
                output = model(images)
        else:
            output = model(images)
    del output  # until here what was kept stays alive, so that no address is given out twice
    return float(sum(stores.values()))


def kept_spelt_out(name: str, side: int) -> float:
    """The same with the attention matrices."""
    return kept(name, side, spelt_out=True)


MEASURES: dict[str, tuple[str, Callable[[str, int], float]]] = {
    "adds": ("multiply-adds", multiply_adds),
    "seconds": ("seconds a pass", seconds),
    "kept": ("bytes kept, fused attention", kept),
    "spelt_out": ("bytes kept, attention spelt out", kept_spelt_out),
}


def exponent(measure: Callable[[str, int], float]) -> Callable[[Run, Any], list[float]]:
    """What asks for the slope of the logarithm of a cost over that of the number of pixels."""

    def take(run: Run, _source: Any) -> list[float]:
        import numpy as np

        first = run.recipe.data.img_size or 0
        sides = [first * times for times in SIDES]
        costs = [measure(run.recipe.model, side) for side in sides]
        return [float(np.polyfit(np.log(np.square(sides)), np.log(costs), 1)[0])]

    return take


VIEWS = {
    key: View(f"{about}: exponent of pixels", "exponent", exponent(measure))
    for key, (about, measure) in MEASURES.items()
}

CONTRASTS = (
    Contrast("multiply-adds: the ViT grows faster", above("vit/adds", "swin/adds"), unit="exponent"),
    Contrast("seconds: the ViT grows faster", above("vit/seconds", "swin/seconds"), unit="exponent"),
    Contrast("bytes kept, fused: the ViT grows faster", above("vit/kept", "swin/kept"), decides=False, unit="exponent"),
    Contrast(
        "bytes kept, spelt out: the ViT grows faster",
        above("vit/spelt_out", "swin/spelt_out"),
        decides=False,
        unit="exponent",
    ),
)


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Attention over everything, and in windows."""
    large = scale.img_size > 32
    vit, swin = (
        ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
        if large
        else ("vit_nano_patch8_32", "swin_nano_patch4_window4_32")
    )
    return (
        Arm("vit", "ViT, attention over all patches", scale.recipe(vit), trained=False),
        Arm("swin", "Swin, attention in windows", scale.recipe(swin), trained=False),
    )


def draw(shown: Shown) -> bytes:
    """Seconds of a pass over the number of pixels."""
    import numpy as np

    from vitrail.comparison.studies.pictures import Line, curves

    first = shown.arms[0].recipe.data.img_size or 0
    sides = [first * times for times in SIDES]
    lines = [
        Line(arm.about, [side**2 for side in sides], [np.array([seconds(arm.recipe.model, side)]) for side in sides])
        for arm in shown.arms
    ]
    return curves("Seconds of a pass of one image", lines, "pixels", "seconds", log_up=True)
