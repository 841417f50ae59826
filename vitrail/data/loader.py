"""Images of a split -> batches, the same whatever the number of workers and wherever a run resumes.

The order of images is a pure function of (seed, epoch), see order.py; the augmentation of an image one of (seed, epoch,
index, copy): torch's random numbers are seeded anew for every image with a hash of these (splitmix64, of which torch's
CPU generator uses 32 bits) and put back afterwards. So batch k of an epoch can be had without the k before it, and
nobody's random numbers change by loading. Workers are told (epoch, index, copy) and hold no state.

Batches come from the workers as uint8 and are normalised on the device of the model (see augment.py). Between two
epochs a loader that is told so reads `ahead`: the workers begin with the next epoch while the main process is still
busy with this one, or scores.

A damaged image is named in its batch and left out; the batch is then smaller, at worst empty.

A worker that dies ends the epoch with a WorkerDied, at the next batch that is asked for and nowhere else. A worker that
hangs is waited for: nothing tells it from a slow disk or a network that comes back, and torch's `timeout` would end
the runs that only have to wait.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitrail.data.augment import Pipeline, Transform
from vitrail.data.erasing import Patch, Patches, together
from vitrail.data.memory import Reused
from vitrail.data.order import Key, Order, Plan, hash_seed
from vitrail.data.pictures import Picture
from vitrail.data.read import ImageError
from vitrail.data.sources import Split
from vitrail.errors import UserError

_SIGNALS = {
    "SIGKILL": "; the system does so when memory runs short",
    "SIGBUS": "; so it ends when the shared memory /dev/shm is full",
}


@dataclass
class Batch:
    """B images of a split that could be read."""

    images: Tensor
    """(B, C, S, S) float32, on the loader's device; shape (0,) where B is 0."""
    labels: Tensor
    """(B,) class numbers, or (B, K) float multi-hot."""
    index: Tensor
    """(B,) numbers of the images in the split."""
    damaged: list[str]
    """Names of the images that should be here and could not be read."""


@dataclass
class _Drawn:
    """A batch on its way from a worker."""

    pixels: Tensor
    """(B, S, S, C) uint8, or what a function other than a Pipeline made of the images; shape (0,) where B is 0."""
    patches: Patches
    labels: Tensor
    index: Tensor
    damaged: list[str]

    def pin_memory(self) -> _Drawn:
        """In page-locked memory, from which a GPU copies without waiting (the DataLoader calls this)."""
        patches = Patches(*(part.pin_memory() for part in self.patches))
        return _Drawn(self.pixels.pin_memory(), patches, self.labels.pin_memory(), self.index, self.damaged)


class _Stands(NamedTuple):
    """Batches that were begun, and where they stand."""

    epoch: int
    start: int
    batches: Iterator[Any]


class WorkerDied(UserError, RuntimeError):
    """A loader process has ended, killed as a rule. A RuntimeError too, which is what torch makes of it."""


class Loader:
    """Batches of `split` through `transform`. One epoch at a time; `workers` processes live as long as the loader.

    `batch_size` images make a batch, of all `world` processes of a run together; this one, number `rank`, reads and
    gives its share of each, which may be empty. `shuffle=False` gives the images in the order of the split;
    `repeats` and `balanced` decide which are drawn where it shuffles (order.py). `drop_last` leaves out a last batch
    that is not full. Images are given on `device`. `ahead`: once an epoch's batches are read, the workers go on with
    the next one's (of a loader that does not shuffle: the same ones again). Raises UserError for numbers that make no
    sense and for `balanced` with several labels an image.
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
        repeats: int = 1,
        balanced: bool = False,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        ahead: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise UserError(f"batch_size is {batch_size} and workers {workers}; they must be at least 1 and 0")
        order = Order(split.labels, seed=seed, shuffle=shuffle, repeats=repeats, balanced=balanced)
        self._plan = Plan(order, batch_size, drop_last=drop_last, rank=rank, world=world)
        self._transform, self._device, self._memory = transform, device, Reused()
        self._next = 1 if shuffle else 0  # epochs further on
        self._ahead, self._waiting = ahead, None  # type: bool, _Stands | None
        self._workers: list[BaseProcess] = []
        self._batches: DataLoader[Any] = DataLoader(
            _Images(split, transform, seed, num_classes),  # type: ignore[arg-type]  # gives batches, not images
            batch_sampler=_Onward(self._plan, self._next) if ahead else self._plan,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_start_behind if torch.device(device).type == "cpu" else start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch would draw from the global random numbers
        )

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: exactly those that a whole epoch would give there.

        Raises WorkerDied where a loader process has ended: at most some seconds after its batch is waited for.
        """
        waiting, self._waiting = self._waiting, None
        there = waiting is not None and waiting[:2] == (epoch, start)
        batches = waiting.batches if waiting is not None and there else None
        for _ in range(start, len(self)):
            self._refuse_dead()
            try:
                if batches is None:
                    batches = self._begin(epoch, start)
                drawn = next(batches)
            except (RuntimeError, OSError, EOFError) as error:  # what torch, or a pipe to a dead process, raises
                self._refuse_dead(error)
                raise
            if isinstance(drawn, UserError):
                try:
                    raise drawn
                finally:
                    del drawn  # else error, traceback and this frame hold each other, and the workers end 5 s late
            yield self._finished(drawn)
        if self._ahead and batches is not None:
            self._waiting = _Stands(epoch + self._next, 0, batches)

    def begin(self, epoch: int, start: int = 0) -> None:
        """Start the processes and read already; `epoch` with the same numbers goes on from there.

        Early is better: what this process has in memory when it forks is copied when it is next written to.
        """
        self._waiting = _Stands(epoch, start, self._begin(epoch, start))

    def _finished(self, drawn: _Drawn) -> Batch:
        images = drawn.pixels.to(self._device, non_blocking=True)
        if len(images) and isinstance(self._transform, Pipeline):
            count, height, width, channels = images.shape
            out = self._memory.empty((count, channels, height, width)) if images.device.type == "cpu" else None
            images = self._transform.finish(images, drawn.patches, out)
        return Batch(images, drawn.labels, drawn.index, drawn.damaged)

    def _begin(self, epoch: int, start: int) -> Iterator[Any]:
        """The DataLoader's batches from there on; the first time starts the workers."""
        self._plan.epoch, self._plan.start = epoch, start
        others = set(multiprocessing.active_children())
        batches = iter(self._batches)
        self._workers = self._workers or [each for each in multiprocessing.active_children() if each not in others]
        # torch answers SIGCHLD by raising, in whatever line this process is at (it may be writing a checkpoint); a dead
        # worker is found without it, here and by the DataLoader, which looks every 5 s while it waits
        ours = threading.current_thread() is threading.main_thread()
        if ours and "torch" in getattr(signal.getsignal(signal.SIGCHLD), "__module__", ""):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def _refuse_dead(self, error: Exception | None = None) -> None:
        """Raises WorkerDied where a worker has ended: they live as long as the loader."""
        if error is not None and self._workers:  # a pipe breaks a moment before its process has ended
            broken = connection.wait([each.sentinel for each in self._workers], timeout=1)
            for each in self._workers:
                if each.sentinel in broken:  # a pipe too: only after join does the system say how it ended
                    each.join()
        dead = [each for each in self._workers if each.exitcode is not None]
        if dead:
            code = dead[0].exitcode or 0
            name = signal.Signals(-code).name if code < 0 else ""
            how = f"was killed by {name}{_SIGNALS.get(name, '')}" if name else f"ended with exit code {code}"
            raise WorkerDied(
                f"a loader process (pid {dead[0].pid}) {how}; try fewer --data.workers than "
                f"{self._batches.num_workers} or a smaller --data.batch-size, and go on with --resume"
            ) from error


class _Onward:
    """A plan's batches, epoch after epoch: a DataLoader's sampler that does not end."""

    def __init__(self, plan: Plan, step: int) -> None:
        self.plan, self.step = plan, step

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Key]]:
        while True:
            yield from self.plan
            self.plan.epoch, self.plan.start = self.plan.epoch + self.step, 0


class _Images:
    """What a worker does: keys -> _Drawn."""

    def __init__(self, split: Split, transform: Transform, seed: int, num_classes: int) -> None:
        self.split, self.transform, self.seed, self.num_classes = split, transform, seed, num_classes

    def __getitems__(self, keys: list[Key]) -> _Drawn | UserError:
        try:
            return self._batch(keys)
        except UserError as error:  # as a value: what a worker raises, the DataLoader wraps in a traceback
            return error

    def _batch(self, keys: list[Key]) -> _Drawn:
        images: list[Tensor] = []
        patches: list[Patch | None] = []
        index: list[int] = []
        damaged: list[str] = []
        picture, held = None, -1
        with torch.random.fork_rng(devices=[]):
            for epoch, i, copy in keys:
                parts = (epoch, i, copy) if copy else (epoch, i)  # the first copy is what an image without copies is
                # not torch.manual_seed, which seeds the GPUs too
                torch.default_generator.manual_seed(hash_seed(self.seed, *parts))
                try:
                    if picture is None or i != held:  # copies follow each other: one reading does for them
                        picture, held = self.split.open(i), i
                    image, patch = self._drawn(picture)
                except (ImageError, OSError):
                    damaged.append(self.split.name(i))
                    continue
                images.append(image)
                patches.append(patch)
                index.append(i)
        stacked = torch.stack(images) if images else torch.empty(0)
        return _Drawn(stacked, together(patches), self._labels(index), torch.tensor(index, dtype=torch.long), damaged)

    def _drawn(self, picture: Picture) -> tuple[Tensor, Patch | None]:
        if isinstance(self.transform, Pipeline):
            return self.transform.draw(picture)
        return self.transform(picture.whole()), None

    def _labels(self, index: list[int]) -> Tensor:
        labels = [self.split.labels[i] for i in index]
        if not labels or not isinstance(labels[0], list):
            return torch.tensor(labels, dtype=torch.long)
        hot = torch.zeros(len(labels), self.num_classes)
        for row, several in zip(hot, labels, strict=True):
            row[several] = 1
        return hot


def start_worker(number: int) -> None:  # noqa: ARG001  (the DataLoader passes it)
    """Leaves Ctrl-C to the main process; SIGTERM ends a worker, whatever the main process does on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start_behind(number: int) -> None:
    """As `start_worker`, for a process that is beside a model's threads on the same processors: these wait for each
    other many times in a step, so that a worker in the place of one would hold up all; it has what they leave."""
    start_worker(number)
    os.nice(15)


def _as_it_is(batch: Any) -> Any:
    return batch
