"""Fewer images of a source: for a quick look, a smoke test, or accuracy over data size."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import chain, zip_longest

import numpy as np

from vitrail.data.sources import Part, Source, Split


def limited(source: Source, most: int, seed: int) -> Source:
    """At most `most` images of each split, drawn evenly from the classes; the same for the same seed."""
    return replace(source, splits={name: _part(split, most, seed) for name, split in source.splits.items()})


def _part(split: Split, most: int, seed: int) -> Split:
    if len(split) <= most:
        return split
    by_class: dict[object, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(split)):
        label = split.labels[i]
        by_class[tuple(label) if isinstance(label, list) else label].append(int(i))
    in_turn = chain.from_iterable(zip_longest(*(by_class[key] for key in sorted(by_class, key=str))))
    return Part(split, sorted([i for i in in_turn if i is not None][:most]))
