"""Images of a split -> batches, the same whatever the number of workers and wherever a run resumes.

The order of images is a pure function of (seed, epoch), the augmentation of an image one of (seed, epoch, index):
torch's random numbers are seeded anew for every image with a hash of the three (splitmix64, of which torch's CPU
generator uses 32 bits) and put back afterwards. So batch k of an epoch can be had without the k before it, and nobody's
random numbers change by loading. Workers are told (epoch, index) and hold no state.

A damaged image is named in its batch and left out; the batch is then smaller, at worst empty.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitrail.data.augment import Transform
from vitrail.data.read import ImageError
from vitrail.data.sources import Split
from vitrail.errors import UserError

Key = tuple[int, int]  # (epoch, index)


@dataclass
class Batch:
    """B images of a split that could be read."""

    images: Tensor
    """(B, C, S, S) float32; shape (0,) where B is 0."""
    labels: Tensor
    """(B,) class numbers, or (B, K) float multi-hot."""
    index: Tensor
    """(B,) numbers of the images in the split."""
    damaged: list[str]
    """Names of the images that should be here and could not be read."""

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies without waiting (the DataLoader calls this)."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("images", "labels", "index")}
        return replace(self, **pinned)


class Loader:
    """Batches of `split` through `transform`. One epoch at a time; `workers` processes live as long as the loader.

    `shuffle=False` gives the images in the order of the split. `drop_last` leaves out a last batch that is not full.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        workers: int,
        num_classes: int,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise UserError(f"batch_size is {batch_size} and workers {workers}; they must be at least 1 and 0")
        self._plan = _Plan(len(split), batch_size, seed, shuffle, drop_last)
        self._batches: DataLoader[Any] = DataLoader(
            _Images(split, transform, seed, num_classes),  # type: ignore[arg-type]  # gives batches, not images
            batch_sampler=self._plan,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch would draw from the global random numbers
        )

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: exactly those that a whole epoch would give there."""
        self._plan.epoch, self._plan.start = epoch, start
        for batch in self._batches:
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # else error, traceback and this frame hold each other, and the workers end 5 s late
            yield batch


class _Plan:
    """Which images make which batch of the epoch that is set."""

    def __init__(self, images: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.images, self.batch_size, self.seed, self.shuffle = images, batch_size, seed, shuffle
        self.batches = images // batch_size if drop_last else -(-images // batch_size)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for k in range(self.start, self.batches):
            chosen = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield [(self.epoch, index) for index in chosen]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.images))
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        return torch.randperm(self.images, generator=generator).tolist()


class _Images:
    """What a worker does: keys -> Batch."""

    def __init__(self, split: Split, transform: Transform, seed: int, num_classes: int) -> None:
        self.split, self.transform, self.seed, self.num_classes = split, transform, seed, num_classes

    def __getitems__(self, keys: list[Key]) -> Batch | UserError:
        try:
            return self._batch(keys)
        except UserError as error:  # as a value: what a worker raises, the DataLoader wraps in a traceback
            return error

    def _batch(self, keys: list[Key]) -> Batch:
        images: list[Tensor] = []
        index: list[int] = []
        damaged: list[str] = []
        with torch.random.fork_rng(devices=[]):
            for epoch, i in keys:
                try:
                    image = self.split.read(i)
                except (ImageError, OSError):
                    damaged.append(self.split.name(i))
                    continue
                # not torch.manual_seed, which seeds the GPUs too
                torch.default_generator.manual_seed(hash_seed(self.seed, epoch, i))
                images.append(self.transform(image))
                index.append(i)
        stacked = torch.stack(images) if images else torch.empty(0)
        return Batch(stacked, self._labels(index), torch.tensor(index, dtype=torch.long), damaged)

    def _labels(self, index: list[int]) -> Tensor:
        labels = [self.split.labels[i] for i in index]
        if not labels or isinstance(labels[0], int):
            return torch.tensor(labels, dtype=torch.long)
        hot = torch.zeros(len(labels), self.num_classes)
        for row, several in zip(hot, labels, strict=True):
            row[several] = 1
        return hot


def hash_seed(*parts: int) -> int:
    """A well-mixed 64-bit seed from whole numbers: splitmix64 over them in turn (Steele et al., OOPSLA 2014)."""
    mixed, mask = 0, 2**64 - 1
    for part in parts:
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed


def start_worker(number: int) -> None:  # noqa: ARG001  (the DataLoader passes it)
    """Leaves Ctrl-C to the main process; SIGTERM ends a worker, whatever the main process does on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch
