"""What a model says of image files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vitrail import engines
from vitrail.data.files import find_images
from vitrail.data.read import ImageError, read_image
from vitrail.engines.examples import examples_of_files
from vitrail.errors import UserError
from vitrail.run import Run, best_device, load, preprocessing, probabilities
from vitrail.training.evaluate import optimized


@torch.no_grad()
def predict(
    run: str | Path | Run,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    batch_size: int = 32,
    pretrained: bool = False,
    optimize: engines.Precision | None = None,
) -> list[dict[str, Any]]:
    """Classify image files (folders and globs too) with a run or a model's name, in the order they are found.

    Returns a dict an image: file, class, probability, top (the `top` likeliest classes with their probabilities); for
    a file that cannot be read, file and error instead: the others are not lost. Probabilities of the classes add up to
    1, but where a run was trained for several labels an image each stands for itself. `optimize` lets the fastest
    engine of this machine compute, no coarser than that precision: to choose it takes as long as hundreds of images,
    to build it again as long as tens. Raises UserError where a name leads to no image, or the run was not trained to
    tell classes.
    """
    run = load(run, pretrained=pretrained)
    if run.recipe.task == "masked_patches":
        raise UserError(
            f"{run.folder or run.recipe.model} has learned to predict masked patches, not classes; fine-tune it first: "
            f"vitrail train DATA --model {run.recipe.model} --initial-checkpoint {run.folder}/model.safetensors"
        )
    files = find_images([images] if isinstance(images, str | Path) else images)
    transform = preprocessing(run.recipe.data)
    device = best_device()
    if optimize:
        run, _ = optimized(run, examples_of_files(run, files), optimize, min(batch_size, len(files)))
    model = run.model.to(device)
    answers: list[dict[str, Any]] = []
    for start in range(0, len(files), batch_size):
        chunk: list[dict[str, Any]] = [{"file": str(file)} for file in files[start : start + batch_size]]
        tensors = []
        for answer in chunk:
            try:
                tensors.append(transform(read_image(answer["file"])))
            except ImageError as error:
                answer["error"] = str(error)
        if tensors:
            logits = model(torch.stack(tensors).to(device)).float().cpu()
            readable = [answer for answer in chunk if "error" not in answer]
            for answer, row in zip(readable, probabilities(run.recipe, logits), strict=True):
                best = row.topk(min(top, len(row)))
                ranked = [
                    {"class": run.classes[k], "probability": p}
                    for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ]
                answer.update(ranked[0], top=ranked)
        answers += chunk
    return answers
