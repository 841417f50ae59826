"""What a comparison asks of each run, kept beside the runs so that it is asked once: answers, cost, robustness, maps,
likeness to the others.

OUT/measured/RUN-DIGEST/answers.npz  costs.json  robustness.json  maps/INDEX.npz
OUT/measured/likeness/RUN--RUN.json

The digest is that of weights and recipe: a run that was trained again is measured again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail import checkpoint
from vitrail.comparison import cost, memory
from vitrail.comparison.robustness import robustness
from vitrail.comparison.standing import Answers
from vitrail.data.read import ImageError
from vitrail.data.sources import Source, Split
from vitrail.interpretability.explain import look
from vitrail.interpretability.similarity import cka
from vitrail.layers.attention import record
from vitrail.recipe import Recipe
from vitrail.run import Run, best_device, load, preprocessing
from vitrail.training.evaluate import outputs_of, score
from vitrail.training.features import images_of, scored_split

SECONDS = 1.0  # of timing each batch size
BATCHES = (1, 32)  # images at once, where speed is measured
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")  # one of each of ImageNet-C's groups
SEVERITIES = (1, 3, 5)
CORRUPTED_IMAGES = 300
COMPARED_IMAGES, COMPARED_BATCH = 256, 128  # of CKA


class Subject(NamedTuple):
    """A finished run and where what is measured of it is kept."""

    folder: Path
    place: Path


class Look(NamedTuple):
    """What a model looked at in an image."""

    image: NDArray[np.uint8]
    """(H, W, 3): what it saw."""
    map: NDArray[np.float32]
    """(H, W) in [0, 1]."""
    method: str
    """rollout or gradcam."""


def subject(folder: Path, out: Path) -> Subject:
    """The run of a folder, with a place for it in the comparison `out`."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "recipe.json").read_bytes())
    return Subject(folder, out / "measured" / f"{folder.name}-{digest.hexdigest()[:8]}")


def as_agreed(folder: Path, recipe: Recipe, seed: int) -> Run:
    """A run that reads the images of the comparison, split and limited as those are, in its own way."""
    run, data = load(folder), recipe.data
    own = replace(run.recipe.data, source=data.source, limit=data.limit, val_fraction=data.val_fraction)
    return run._replace(recipe=replace(run.recipe, seed=seed, data=own))


def _kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `file` holds, made and written where it is not there yet."""
    if not file.exists():
        value = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_file(file, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _kept_arrays(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.exists():
        written = io.BytesIO()
        np.savez_compressed(written, **make())
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_file(file, written.getvalue())
    with np.load(file) as found:
        return dict(found)


# ---------------------------------------------------------------------- how good, how costly


def answers(one: Subject, source: Source, recipe: Recipe, seed: int) -> Answers:
    """What a run says of every readable image of the split that is scored, its outputs in the order of the classes."""
    split = source.splits[scored_split(source)]

    def ask() -> dict[str, Any]:
        run, device = as_agreed(one.folder, recipe, seed), best_device()
        scored = score(run.model.to(device), images_of(run, split, len(source.classes)), device)
        logits = scored.logits[:, outputs_of(run, source)]
        return {"logits": logits.numpy(), "labels": scored.labels.numpy(), "index": scored.index.numpy()}

    found = _kept_arrays(one.place / "answers.npz", ask)
    names = tuple(split.name(int(i)) for i in found["index"])
    return Answers(found["logits"].astype(np.float64), found["labels"], names, found["index"])


def costs(one: Subject) -> dict[str, Any]:
    """parameters, flops (multiply-adds of one image), images_per_second by batch size, memory, and what mixes places:
    attends (softmax attention) and convolves (kernels that overlap)."""

    def count() -> dict[str, Any]:
        run = load(one.folder)
        model, data = run.model, run.recipe.data
        assert data.img_size, "the recipe of a run folder is resolved"
        assert data.in_chans, "the recipe of a run folder is resolved"
        shape = (data.in_chans, data.img_size, data.img_size)
        with torch.no_grad(), record(model) as maps:
            model(torch.zeros(1, *shape))
        flops = cost.flops(model, data.img_size, data.in_chans)
        model = model.to(best_device())
        speeds = {str(n): cost.images_per_second(model, (n, *shape), seconds=SECONDS) for n in BATCHES}
        return {
            "img_size": data.img_size,
            "parameters": cost.parameters(model),
            "flops": flops,
            "images_per_second": speeds,
            "memory": memory.peak_memory(one.folder),
            "attends": bool(maps),
            "convolves": any(_overlaps(module) for module in model.modules()),
        }

    return _kept(one.place / "costs.json", count)


def _overlaps(module: nn.Module) -> bool:
    """A convolution that brings places together, other than one that cuts the picture into patches."""
    return isinstance(module, nn.Conv2d) and any(
        k > s for k, s in zip(module.kernel_size, module.stride, strict=True) if k > 1
    )


def training(folder: Path) -> dict[str, Any]:
    """seconds of training, scores between the epochs left out, and the steps, as the log of a run tells; else None."""
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not lines or not all(line.get("images_per_s") for line in lines):
        return {"seconds": None, "steps": lines[-1]["step"] if lines else None}
    batch = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["data"]["batch_size"]
    seconds, before = 0.0, 0
    for line in lines:
        seconds += (line["step"] - before) * batch / line["images_per_s"]
        before = line["step"]
    return {"seconds": seconds, "steps": before}


# ---------------------------------------------------------------------- what else


def robust(one: Subject, recipe: Recipe, seed: int) -> dict[str, Any]:
    """`robustness` of a few corruptions on a few hundred of the images that are scored."""

    def corrupt() -> dict[str, Any]:
        run = as_agreed(one.folder, recipe, seed)
        return robustness(
            run._replace(model=run.model.to(best_device())),
            limit=CORRUPTED_IMAGES,
            severities=SEVERITIES,
            corruptions=CORRUPTIONS,
            attacks=(),
        )

    return _kept(one.place / "robustness.json", corrupt)


def looks(one: Subject, split: Split, indices: Sequence[int]) -> list[Look]:
    """What a run looked at in some images of a split."""
    files = [one.place / "maps" / f"{i}.npz" for i in indices]
    run = None if all(file.exists() for file in files) else load(one.folder)

    def seen(i: int) -> dict[str, Any]:
        assert run is not None, "a file is missing"
        found = look(run, split.read(i), split.name(i))
        return {"image": found.image, "map": found.map, "method": np.array(found.method)}

    kept = [_kept_arrays(file, partial(seen, i)) for file, i in zip(files, indices, strict=True)]
    return [Look(parts["image"], parts["map"], str(parts["method"])) for parts in kept]


def likeness(one: Subject, other: Subject, split: Split, out: Path) -> dict[str, Any]:
    """CKA of every block of one run with every block of another, on evenly spaced images of a split."""
    file = out / "measured" / "likeness" / f"{one.place.name}--{other.place.name}.json"

    def compare() -> dict[str, Any]:
        runs = [load(each.folder) for each in (one, other)]
        device = best_device()
        first, second = (run.model.to(device) for run in runs)
        found = cka(first, _pairs(runs, split, device), second)
        values = [[float(v) if math.isfinite(v) else None for v in row] for row in found.values]
        return {"rows": found.rows, "columns": found.columns, "values": values, "images": found.images}

    return _kept(file, compare)


def _pairs(runs: Sequence[Run], split: Split, device: torch.device) -> list[list[Tensor]]:
    """The same images as each of two runs sees them, in batches of one size; unreadable ones are left out."""
    pixels = []
    for i in range(0, len(split), max(1, len(split) // COMPARED_IMAGES)):
        try:
            pixels.append(split.read(i))
        except (ImageError, OSError):
            continue
    pixels = pixels[:COMPARED_IMAGES]
    size = min(COMPARED_BATCH, len(pixels))
    batches = []
    for start in range(0, len(pixels) - size + 1, max(size, 1)):
        part = pixels[start : start + size]
        batches.append([torch.stack([preprocessing(run.recipe.data)(one) for one in part]).to(device) for run in runs])
    return batches
