"""How cost grows with the picture: ViT-S/16 and Swin-T at 224, 448, 896 and 1792 pixels a side, one image at a time.

    python benchmarks/growth.py              # about 6 minutes
    python benchmarks/growth.py --quick      # up to 896, one round: half a minute
    python benchmarks/growth.py --keep       # writes results/growth.json too

Forward is a pass without gradients, training a forward and backward pass in fp32; each model, kind and size in a
process of its own. Memory is the highest mark of that process less its mark when model and image were ready and the
gradients had their place, so weights and libraries are not in it; the slopes are of logarithms over those of the
pixels, which are 256 times as many as tokens of ViT-S/16: 1 is linear, 2 quadratic. Two slopes are given: over all
sizes, and over the two largest, where what is fixed no longer counts. Swin's windows stay 7 x 7.

glibc gives large blocks back to the system after use and asks for them anew; the system then zeroes them page by page,
which at 1792 pixels takes as long as the computing does. Swin is measured a second time with the memory kept, by
glibc's own environment variables.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from side_by_side import Measured, contest, keep, table

MODELS = {"ViT-S/16": "vit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}
SIDES = (224, 448, 896, 1792)
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
SETTINGS: dict[str, dict[str, dict[str, str]]] = {"ViT-S/16": {"": {}}, "Swin-T": {"": {}, ", memory kept": KEPT}}


def forward(name: str, side: int) -> Callable[[], None]:
    import torch

    from vitrail import create_model

    model = create_model(name, img_size=side).eval()
    images = torch.randn(1, 3, side, side)

    def work() -> None:
        with torch.inference_mode():
            model(images)

    return work


def training(name: str, side: int) -> Callable[[], None]:
    import torch

    from vitrail import create_model

    model = create_model(name, img_size=side).train()
    images = torch.randn(1, 3, side, side)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def work() -> None:
        model(images).square().mean().backward()

    return work


def slope(sides: list[int], costs: list[float]) -> float:
    """Of the least squares line through the logarithms of a cost over those of the pixels."""
    x, y = [2 * math.log(side) for side in sides], [math.log(cost) for cost in costs]
    across, up = statistics.mean(x), statistics.mean(y)
    found = sum((a - across) * (b - up) for a, b in zip(x, y, strict=True)) / sum((a - across) ** 2 for a in x)
    return float(found)


def measure(
    name: str, kind: Callable[..., Any], sides: tuple[int, ...], rounds: int, environment: dict[str, str]
) -> dict[int, Measured]:
    """Seconds and memory at each size, largest last; a size that fails ends the row."""
    found: dict[int, Measured] = {}
    for side in sides:
        turns, warmup = (1, 1) if side > 1000 else (rounds, 2)  # the first passes wait for fresh memory
        work, around = {name: partial(kind, name, side)}, {name: environment}
        one = contest(work, rounds=turns, warmup=warmup, environments=around)[name]
        if one.failed:
            print(f"{name} at {side}: {one.failed}")
            break
        found[side] = one
    return found


def rows_of(model: str, what: str, found: dict[int, Measured]) -> list[dict[str, Any]]:
    """One row for time, one for memory."""
    sides = list(found)
    costs = {
        ("s", "{:.2f}"): [statistics.median(one.seconds) for one in found.values()],
        ("MB", "{:.0f}"): [(one.peak - one.ready) / 1e6 for one in found.values()],
    }
    return [
        {
            "model": model,
            "what": f"{what}, {unit}",
            **{str(side): shown.format(cost) for side, cost in zip(sides, each, strict=True)},
            "slope": f"{slope(sides, each):.2f}",
            "slope of the last two": f"{slope(sides[-2:], each[-2:]):.2f}",
        }
        for (unit, shown), each in costs.items()
    ]


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="up to 896 pixels, one round")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), help="these models")
    parser.add_argument("--keep", action="store_true", help="write results/growth.json")
    options = parser.parse_args()
    sides, rounds = (SIDES[:-1], 1) if options.quick else (SIDES, options.rounds)
    rows: list[dict[str, Any]] = []
    for model in options.only or MODELS:
        for setting, environment in SETTINGS[model].items():
            for what, kind in (("forward", forward), ("forward and backward", training)):
                found = measure(MODELS[model], kind, sides, rounds, environment)
                rows += rows_of(model, what + setting, found)
    print(table(rows))
    if options.keep:
        keep("growth", rows, rounds=rounds)


if __name__ == "__main__":
    main()
