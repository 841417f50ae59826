"""What trained models are asked on the test images of a study: are they right, and the images as they see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.loader import Loader
from vitrail.data.sources import Source
from vitrail.run import Run, best_device, preprocessing
from vitrail.training.evaluate import score

Change = Callable[[Tensor], Tensor]


def right(run: Run, source: Source, *, change: Change | None = None, img_size: int | None = None) -> NDArray[np.bool_]:
    """Whether a model names each test image rightly, (images,); `change` is done to the image, uint8 (C, H, W), and
    `img_size` is the side at which the model sees it, if not its own."""
    device = best_device()
    scored = score(run.model.to(device), _loader(run, source, 256, change, img_size), device)
    answers = np.zeros(len(source.splits["test"]), bool)
    answers[scored.index.numpy()] = (scored.logits.argmax(dim=1) == scored.labels).numpy()
    return answers


def batches(run: Run, source: Source, *, most: int, batch_size: int = 64) -> Iterator[Tensor]:
    """Up to `most` test images as the model sees them, (batch_size, C, H, W), where the model is; whole batches, or all
    there are where they are fewer than one."""
    device = best_device()
    run.model.to(device)
    seen = 0
    for batch in _loader(run, source, batch_size, None, None).epoch(0):
        if seen and (seen + len(batch.images) > most or len(batch.images) < batch_size):
            return
        seen += len(batch.images)
        yield batch.images.to(device)


def _loader(run: Run, source: Source, batch_size: int, change: Change | None, img_size: int | None) -> Loader:
    seen = preprocessing(replace(run.recipe.data, img_size=img_size or run.recipe.data.img_size))
    return Loader(
        source.splits["test"],
        seen if change is None else lambda image: seen(change(image)),
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        workers=0,
        num_classes=len(source.classes),
    )
