"""The table of official weights, `models/weights.toml`: which repository, which licence, which preprocessing; and the
classes that most of them tell apart."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).parent.parent / "models" / "weights.toml"
IMAGENET = Path(__file__).parent / "imagenet.txt"


@dataclass(frozen=True)
class Official:
    """Official weights of one model, and the preprocessing they were evaluated with.

    One of `repo` (Hugging Face hub), `torchvision` (an entry of torchvision's weights) and `url` (a file of the
    authors') says where they are.
    `num_classes` is 0 where no classifier is published.
    """

    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    crop_pct: float
    num_classes: int
    repo: str | None = None
    torchvision: str | None = None
    url: str | None = None
    beside: str | None = None
    """A second file of the repository, which `files.read_state_dict` looks for beside the weights."""

    @property
    def source(self) -> str:
        """The repository, file or entry, in words for a message."""
        return self.repo or self.url or f"torchvision's {self.torchvision}"


def official(name: str) -> Official | None:
    """The official weights of model `name`, or None where there are none."""
    row = table().get(name)
    return Official(**row) if row else None


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Every row, by model name: the fields of `Official`."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: row | {"mean": tuple(row["mean"]), "std": tuple(row["std"])} for name, row in rows.items()}


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1000 classes in torchvision's words, which would cost a second to import."""
    return tuple(IMAGENET.read_text(encoding="utf-8").splitlines())
