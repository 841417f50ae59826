"""A picture of what a model is trained on: images of a set, each beside its augmented versions, mixing included."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vitrail.data.augment import Augmentation, Interpolation, Transform, eval_transform, train_transform
from vitrail.data.loader import Batch, Loader
from vitrail.data.mix import mix
from vitrail.data.sources import Part, Source, open_source
from vitrail.errors import UserError

_MEAN, _STD = 0.5, 0.25  # photographs' own, nearly, so that erased noise looks as strong as it is


class Mixing(Augmentation, Protocol):
    """What is read of recipe.Augment for a whole batch."""

    @property
    def mixup(self) -> float: ...
    @property
    def cutmix(self) -> float: ...
    @property
    def mix_prob(self) -> float: ...


def show_batch(
    data: str | Source,
    out: str | Path,
    *,
    augment: Mixing,
    img_size: int,
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 0.875,
    images: int = 6,
    versions: int = 5,
    seed: int = 0,
) -> Path:
    """Writes a PNG: a row for each of `images` training images, as scored (left) and in `versions` epochs of training.

    `data` is what `open_source` takes. With MixUp or CutMix a column is one mixed batch, and titles give the shares.
    Returns the path. Raises UserError for a source without a readable image, or a path that cannot be written.
    """
    source = data if isinstance(data, Source) else open_source(data, seed=seed)
    scale = {"mean": [_MEAN] * source.in_chans, "std": [_STD] * source.in_chans}
    plain = eval_transform(img_size=img_size, interpolation=interpolation, crop_pct=crop_pct, **scale)
    random = train_transform(augment, img_size=img_size, interpolation=interpolation, crop_pct=crop_pct, **scale)
    train = source.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = Part(train, order[:images])
    columns = [
        _batch(source, chosen, transform, seed, epoch) for epoch, transform in enumerate([plain, *[random] * versions])
    ]
    if not len(columns[0].images):
        raise UserError(f"{source.name}: none of the {len(chosen)} images drawn can be read; run vitrail doctor on it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shown = [_titled(source, columns[0], None)]
        shown += [_titled(source, column, augment) for column in columns[1:]]
    return _save(_draw(shown, titles=bool(augment.mixup or augment.cutmix)), Path(out))


def _batch(source: Source, chosen: Part, transform: Transform, seed: int, epoch: int) -> Batch:
    loader = Loader(
        chosen,
        transform,
        batch_size=max(len(chosen), 1),
        seed=seed,
        shuffle=False,
        workers=0,
        num_classes=len(source.classes),
    )
    return next(loader.epoch(epoch))


def _titled(source: Source, batch: Batch, augment: Mixing | None) -> list[tuple[Tensor, str]]:
    """(picture (H, W, C) in [0, 1], title) of every image of a batch, mixed as in training, or as it is."""
    images, targets = mix(
        batch.images,
        batch.labels,
        num_classes=len(source.classes),
        mixup=augment.mixup if augment else 0.0,
        cutmix=augment.cutmix if augment else 0.0,
        smoothing=0.0,
        prob=augment.mix_prob if augment else 0.0,
    )
    pictures = (images * _STD + _MEAN).clamp(0, 1).permute(0, 2, 3, 1)
    return [(picture, _title(source.classes, target)) for picture, target in zip(pictures, targets, strict=True)]


def _title(classes: list[str], target: Tensor) -> str:
    """The classes of an image, the shares too where it is mixed: "cat", "0.7 cat + 0.3 dog"."""
    shares = [
        (float(share), textwrap.shorten(classes[k], 22, placeholder="…"))
        for k, share in enumerate(target)
        if share > 0.005
    ]
    shares = sorted(shares, reverse=True)[:3]
    if all(share == 1 for share, _ in shares):
        return ", ".join(name for _, name in shares)
    return "\n+ ".join(f"{share:.2f} {name}" for share, name in shares)


def _draw(columns: list[list[tuple[Tensor, str]]], *, titles: bool) -> Figure:
    """Columns side by side, the first set apart; titles over all pictures, or over those of the first column only."""
    rows = len(columns[0])
    figure = Figure(figsize=(1.5 * len(columns) + 0.4, (1.9 if titles else 1.7) * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for number, column in enumerate(columns):
        for axes, (picture, title) in zip(grid[:, number], column, strict=True):
            axes.imshow(picture.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if number == 0 or titles:
                axes.set_title(title, fontsize=7, parse_math=False)
            for side in axes.spines.values():
                side.set_visible(number == 0)
        if number < 2:
            grid[-1, number].set_xlabel(
                "as scored" if number == 0 else "as trained on, epoch by epoch", fontsize=8, loc="left"
            )
    return figure


def _save(figure: Figure, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a class name in a script that matplotlib's font lacks
            figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path
