"""Which images make which batch of an epoch, and which of them this process reads: pure functions of (seed, epoch).

    plain       every image once, shuffled, or in the order of the split
    balanced    rounds over the classes that occur, shuffled anew each round, so that any beginning of an epoch holds
                every class equally often; within a class its images in shuffled order, again and again
    repeats     repeated augmentation (Hoffer et al., 2020, arXiv 1901.09335; DeiT's RASampler): so many copies of each
                image in a row, of which an epoch keeps as many as there are images

An image that comes again in an epoch has another copy number, by which it is augmented otherwise. DeiT's sampler keeps
a multiple of 256 of the images; here an epoch keeps as many as there are.

Several processes share each batch out by pairs: MixUp and CutMix mix an image with the one as far from the other end
of the batch, so both go to one process, and every process flips its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitrail.data.compact import Labels, as_labels
from vitrail.errors import UserError

Key = tuple[int, int, int]
"""(epoch, index of the image in its split, which copy of it in this epoch)."""


class Order:
    """The images of an epoch in order. `labels` are those of the split."""

    def __init__(
        self, labels: Sequence[int] | Labels, *, seed: int, shuffle: bool, repeats: int, balanced: bool
    ) -> None:
        if repeats < 1:
            raise UserError(f"data.repeats is {repeats}; it must be 1 or more")
        if not shuffle and (repeats > 1 or balanced):
            raise UserError("data.repeats and data.balanced are for training, where images are shuffled")
        self.images, self.seed, self.shuffle, self.repeats = len(labels), seed, shuffle, repeats
        self.classes = _classes(labels) if balanced else None

    def of(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(N,) indices and (N,) copy numbers of the N draws of an epoch, N being the images of the split."""
        index, copy = self._drawn(torch.Generator().manual_seed(hash_seed(self.seed, epoch)))
        if self.repeats > 1:
            distinct = -(-self.images // self.repeats)
            index = index[:distinct].repeat_interleave(self.repeats)[: self.images]
            copy = (copy[:distinct] * self.repeats).repeat_interleave(self.repeats)[: self.images]
            copy += torch.arange(self.images) % self.repeats
        return index, copy

    def _drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.shuffle:
            return torch.arange(self.images), torch.zeros(self.images, dtype=torch.long)
        shuffled = torch.randperm(self.images, generator=generator)
        if self.classes is None or not self.images:
            return shuffled, torch.zeros_like(shuffled)
        by_class = shuffled[self.classes[shuffled].argsort(stable=True)]
        sizes = self.classes.bincount()
        starts = sizes.cumsum(0) - sizes
        rounds = -(-self.images // len(sizes))
        turns = torch.rand(rounds, len(sizes), generator=generator).argsort(1).flatten()[: self.images]
        drawn = torch.arange(self.images) // len(sizes)  # of its class so far: one a round
        return by_class[starts[turns] + drawn % sizes[turns]], drawn // sizes[turns]


class Plan:
    """This process's share of the batches of the epoch that is set, from batch `start` on: a DataLoader's sampler."""

    def __init__(self, order: Order, batch_size: int, *, drop_last: bool, rank: int, world: int) -> None:
        self.order, self.batch_size, self.rank, self.world = order, batch_size, rank, world
        self.batches = order.images // batch_size if drop_last else -(-order.images // batch_size)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        index, copy = self.order.of(self.epoch)
        for k in range(self.start, self.batches):
            batch = slice(k * self.batch_size, (k + 1) * self.batch_size)
            mine = share_of_batch(len(index[batch]), self.rank, self.world)
            pairs = zip(index[batch][mine].tolist(), copy[batch][mine].tolist(), strict=True)
            yield [(self.epoch, i, c) for i, c in pairs]


def share_of_batch(images: int, rank: int, world: int) -> list[int]:
    """The places, rising, that process `rank` of `world` has in a batch: pairs (j, images - 1 - j) dealt in turn."""
    half = images // 2
    first = range(rank, half, world)
    middle = [half] if images % 2 and half % world == rank else []
    return [*first, *middle, *(images - 1 - j for j in reversed(first))]


def hash_seed(*parts: int) -> int:
    """A well-mixed 64-bit seed from whole numbers: splitmix64 over them in turn (Steele et al., OOPSLA 2014)."""
    mixed, mask = 0, 2**64 - 1
    for part in parts:
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed


def _classes(labels: Sequence[int] | Labels) -> Tensor:
    """(N,) the class of each image, numbered from 0 without gaps."""
    labels = as_labels(labels)
    if isinstance(labels, list):
        raise UserError("data.balanced needs one label an image, and these images have several; leave it out")
    return torch.from_numpy(labels).unique(return_inverse=True)[1]
