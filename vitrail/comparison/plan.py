"""What a comparison trains and measures, and where each run lies: every entrant, with every seed, on every fraction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.comparison.entrants import Entrant, Terms
from vitrail.data.sources import Source


@dataclass(frozen=True)
class Plan:
    """All that is trained and measured."""

    terms: Terms
    entrants: Sequence[Entrant]
    epochs: Mapping[str, int]
    """Of each entrant that is trained here."""
    seeds: int
    fractions: Sequence[float]
    """In rising order; 1 is the last."""
    sources: Sequence[Source]
    """By seed."""
    out: Path

    def folder(self, entrant: Entrant, seed: int, fraction: float = 1.0) -> Path:
        """The run of an entrant with a seed and a part of the training images."""
        if entrant.folder is not None:
            return entrant.folder
        part = "" if fraction == 1 else f"-{fraction:g}"
        return self.out / "runs" / f"{entrant.slug}-{seed}{part}"

    def seeds_of(self, entrant: Entrant, fraction: float = 1.0) -> range:
        """The seeds that there are of an entrant: a run that joins counts as the first."""
        if entrant.folder is not None:
            return range(1 if fraction == 1 else 0)
        return range(self.seeds)

    def limit(self, fraction: float) -> int | None:
        """How many images a part of the training images is; None: no other limit than that of all."""
        return None if fraction == 1 else round(fraction * len(self.sources[0].splits["train"]))

    def runs(self) -> Iterator[tuple[Entrant, int, float]]:
        """All that is trained: first everything with all images and the first seed."""
        for fraction in reversed(self.fractions):
            for seed in range(self.seeds):
                yield from ((one, seed, fraction) for one in self.entrants if one.folder is None)
