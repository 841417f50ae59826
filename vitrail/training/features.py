"""What a frozen model knows of images: the vectors that its last layer reads. Probes are trained on them.

Here too: which images a model that is only looked at may be scored on, for every measurement that fits something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vitrail.data.loader import Loader
from vitrail.data.sources import Source, Split, hold_out
from vitrail.errors import UserError
from vitrail.run import Run, best_device, open_data, preprocessing
from vitrail.training.evaluate import score


@dataclass(frozen=True)
class Features:
    """Every readable image of a split as a frozen model sees it. N images, D numbers each."""

    x: Tensor
    """(N, D) float32, on the CPU."""
    labels: Tensor
    """(N,) long."""
    damaged: list[str]
    """Names of the images that could not be read; they are left out."""


class _Headless(nn.Module):
    """A model without its last layer: images -> what that layer reads, (B, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


def features(run: Run, source: Source, split: str, *, batch_size: int | None = None) -> Features:
    """What the last layer of `run` reads for every image of `source.splits[split]`, prepared as in evaluation.

    The classes need not be the model's. Raises UserError where no image can be read.
    """
    device = best_device()
    # put in eval mode here: `score` gives back the mode that it found
    headless = _Headless(run.model).to(device).eval()
    scored = score(headless, images_of(run, source.splits[split], len(source.classes), batch_size), device)
    return Features(scored.logits, scored.labels, scored.damaged)


def images_of(run: Run, split: Split, num_classes: int, batch_size: int | None = None) -> Loader:
    """The images of a split in its order, as `run` sees them when it is scored."""
    data = run.recipe.data
    return Loader(
        split,
        preprocessing(data),
        batch_size=batch_size or data.batch_size,
        seed=0,
        shuffle=False,
        workers=data.workers,
        num_classes=num_classes,
        device=best_device(),
    )


def source_of(run: Run, data: str | None) -> Source:
    """The images `data`, or those that `run` was trained on, split as its seed decides; one label an image."""
    recipe = run.recipe
    name = data or recipe.data.source
    if not name:
        raise UserError(f"{recipe.model} is a model, not a run: name the DATA to look at")
    source = open_data(replace(recipe, data=replace(recipe.data, source=name)))
    if source.multi_label:
        raise UserError(f"{source.name} has several labels an image; this measures models with one label each")
    return source


def scored_split(source: Source) -> str:
    """Test where the source has one, else val."""
    return "test" if "test" in source.splits else "val"


def divided(source: Source, split: str, share: float, seed: int = 0) -> tuple[Split, Split]:
    """A split as two, the second with `share` of each class; the same for the same seed."""
    alone = replace(source, splits={"train": source.splits[split]}, notes=[])
    parts = hold_out(alone, seed=seed, val_fraction=share).splits
    return parts["train"], parts["val"]


def said(run: Run) -> str:
    """A run by its folder, a model by its name."""
    return str(run.folder or run.recipe.model)
