"""Fewer images of a source: for a quick look, a smoke test, or accuracy over data size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitrail.data.compact import Labels, Numbers, as_labels
from vitrail.data.sources import Part, Source, Split


def limited(source: Source, most: int, seed: int) -> Source:
    """At most `most` images of each split, drawn evenly from the classes; the same for the same seed."""
    return replace(source, splits={name: _part(split, most, seed) for name, split in source.splits.items()})


def _part(split: Split, most: int, seed: int) -> Split:
    if len(split) <= most:
        return split
    shuffled = np.random.default_rng(seed).permutation(len(split))
    kinds = _kinds(as_labels(split.labels))[shuffled]
    by_kind, sizes = np.argsort(kinds, kind="stable"), np.bincount(kinds)
    turn = np.empty_like(kinds)  # how many of its kind come before it
    turn[by_kind] = np.arange(len(kinds)) - np.repeat(sizes.cumsum() - sizes, sizes)
    first = np.argpartition(turn * len(sizes) + kinds, most)[:most]  # round by round, in each the kinds in order
    return Part(split, np.sort(shuffled[first]))


def _kinds(labels: Labels) -> Numbers:
    """(N,) what each image shows, its class or its set of them, numbered in the order of their text."""
    if isinstance(labels, np.ndarray):
        values, kinds = np.unique(labels, return_inverse=True)
        return np.argsort(sorted(range(len(values)), key=lambda k: str(values[k])))[kinds]
    sets = [tuple(each) for each in labels]
    number = {each: k for k, each in enumerate(sorted(set(sets), key=str))}
    return np.array([number[each] for each in sets])
