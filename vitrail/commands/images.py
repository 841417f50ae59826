"""The verbs for images before anything is trained on them: doctor, show-batch, shard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vitrail import models, recipes
from vitrail.commands.say import Json, console, print_damaged, print_json


def doctor(
    data: Annotated[Positional[str], arg(metavar="DATA")], /, *, out: Path = Path("doctor.json"), as_json: Json = False
) -> None:
    """Scan a set of images for damaged, odd, duplicate and misnamed files, and count its classes.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        out: Where the findings are written as JSON.
    """
    from vitrail.checkpoint import write_file
    from vitrail.data.doctor import doctor, print_findings

    findings = doctor(data)
    write_file(out, json.dumps(findings, ensure_ascii=False, indent=1) + "\n")
    if as_json:
        print_json(findings)
    else:
        print_findings(findings, console())
    print(f"written to {out}", file=sys.stderr)


def show_batch(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    recipe: str | None = None,
    out: Path = Path("batch.png"),
) -> None:
    """A picture of an augmented batch, to see what a model will see.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        recipe: Whose augmentation. Without: what `vitrail train DATA` would use.
        out: The PNG file to write.
    """
    from vitrail.data.show import show_batch

    chosen = recipes.find_recipe(recipe or ("quickstart" if data == "digits" else "scratch"))
    img_size = chosen.data.img_size or models.describe(chosen.model)["config"]["img_size"]
    print(show_batch(data, out, augment=chosen.augment, img_size=img_size, interpolation=chosen.data.interpolation))


def shard(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    images_per_shard: int = 1000,
    as_json: Json = False,
) -> None:
    """Write a set of images as WebDataset tar shards: few large files, shuffled, that train as OUT/*.tar.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        out: The folder to make.
        images_per_shard: Images of a shard; the last one of a split holds what remains.
    """
    from vitrail.data.write_shards import write_shards

    written = write_shards(data, out, images_per_shard=images_per_shard)
    if as_json:
        print_json(written)
        return
    print_damaged([f"{one['split']}: {one['file']} ({one['reason']})" for one in written["damaged"]])
    for name, split in written["splits"].items():
        shards = f"{split['shards']:,} shard{'s' if split['shards'] > 1 else ''}"
        print(f"{name}: {split['images']:,} images in {shards}, {split['bytes'] / 1e6:,.1f} MB")
    if written["damaged"]:
        print(f"left out: {len(written['damaged']):,} damaged images")
    print(f"train on them with: vitrail train '{out}/*.tar'")
