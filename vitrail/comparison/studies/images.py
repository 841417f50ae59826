"""The images of a study as arrays in one file: how many there are to learn from is then the same for all, and visible.

A seed draws its own training images (with all of them in use, all seeds share one file); the images scored are always
the same. Training images that are left over are what the runs watch; without any, they watch the test images, which
changes nothing, since every arm is scored after its last epoch.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from torchvision.transforms.v2 import functional as F

from vitrail import checkpoint
from vitrail.data.limit import limited
from vitrail.data.sources import Part, Source, Split, open_source
from vitrail.errors import UserError

WATCHED = 200


def prepared(source: str, folder: Path, *, images: int, test_images: int, side: int, seed: int) -> Path:
    """The .npz file in `folder` with `images` to train on and `test_images` to score, from any `source`; made if it
    is not there. Images of differing sizes are resized and cropped to `side` pixels.

    Raises UserError where the source cannot be trained on or has several labels an image.
    """
    opened = open_source(source)
    if opened.multi_label:
        raise UserError(f"{source} has several labels an image, and a study counts right answers; give one label each")
    whole = opened.splits["train"]
    if images < len(opened.classes):
        raise UserError(
            f"{source} has {len(opened.classes)} classes, and an arm of this scale learns from {images} images; "
            f"choose a larger --scale"
        )
    seed = seed if images < len(whole) else 0
    words = re.sub(r"\W+", "-", Path(source.removeprefix("hf:")).stem).strip("-") or "data"
    same = hashlib.sha256(repr((source, test_images, side)).encode()).hexdigest()[:8]
    path = folder / f"{words}-{same}-{min(images, len(whole))}-{seed}.npz"
    if not path.exists():
        train = _drawn(opened, whole, images, seed)
        left = np.setdiff1d(_drawn(opened, whole, images + WATCHED, seed).indices, train.indices)
        test = _drawn(opened, opened.splits.get("test") or opened.splits["val"], test_images, 0)
        splits = {"train": train, "test": test} | ({"val": Part(whole, left)} if len(left) else {})
        _write(path, splits, opened.classes, side)
    return path


def _drawn(source: Source, split: Split, most: int, seed: int) -> Part:
    """At most `most` images of a split, evenly from the classes: of one seed, more images hold all of the fewer."""
    part = limited(replace(source, splits={"only": split}), most, seed).splits["only"]
    return part if part is not split and isinstance(part, Part) else Part(split, range(len(split)))


def _write(path: Path, splits: dict[str, Part], classes: list[str], side: int) -> None:
    arrays = {"class_names": np.array(classes)}
    read = {name: [part.read(i) for i in range(len(part))] for name, part in splits.items()}
    shapes = {image.shape for part in read.values() for image in part}
    for name, part in read.items():
        if len(shapes) > 1:
            part = [F.center_crop(F.resize(image, [side], antialias=True), [side, side]) for image in part]
        arrays[f"x_{name}"] = np.stack([image.permute(1, 2, 0).numpy() for image in part])
        arrays[f"y_{name}"] = np.array(splits[name].labels)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # not its flag allow_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_file(path, file.getvalue())
