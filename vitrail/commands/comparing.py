"""The verb that compares models on the user's own images: `vitrail compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.commands.say import Json, print_json
from vitrail.errors import UserError


def compare(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    models: str = "",
    runs: tuple[Path, ...] = (),
    epochs: int | None = None,
    seeds: int = 1,
    out: Path = Path("comparison"),
    recipe: str | None = None,
    budget: Literal["epochs", "time", "flops"] = "epochs",
    minutes: float | None = None,
    img_size: int | None = None,
    limit: int | None = None,
    fractions: str = "1",
    as_json: Json = False,
) -> None:
    """Train several models alike on the same images, compare them with intervals, and write one page.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        models: Names from `vitrail models`, separated by commas: resnet18,deit_tiny_patch16_224.
        runs: Finished run folders with the same classes, which join as they are.
        epochs: Passes over the training images. Without: the recipe's.
        seeds: Each model is trained so many times; a difference then counts the luck of a seed.
        out: The folder of runs, page and numbers; what is finished in it is not repeated.
        recipe: How all models are trained (`vitrail recipes`). Without: as `vitrail train` would.
        budget: What is equal: epochs; flops, those of the first model; time, --minutes of training each.
        minutes: Of training a model, with --budget time.
        img_size: Side of the images in pixels. Without: their own where they are small squares, else each model's.
        limit: Use at most so many images of each split.
        fractions: Train on these parts of the images too, separated by commas: 0.1,0.3,1.
    """
    from vitrail.comparison.compare import compare

    page = compare(
        data,
        [name.strip() for name in models.split(",") if name.strip()],
        runs=runs,
        epochs=epochs,
        seeds=seeds,
        out=out,
        recipe=recipe,
        budget=budget,
        minutes=minutes,
        img_size=img_size,
        limit=limit,
        fractions=_numbers(fractions),
    )
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"page": str(page), **found})
    else:
        print("\n".join(found["summary"]))
    print(f"page     {page}\nnumbers  {page.with_suffix('.json')}", file=sys.stderr)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--fractions is '{text}'; give numbers separated by commas, such as 0.1,0.3,1") from error
