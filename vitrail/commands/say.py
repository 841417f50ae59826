"""What the verbs of the command line share: arguments that mean the same everywhere, and how answers are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vitrail.errors import UserError

Json = Annotated[
    FlagCreatePairsOff[bool], arg(name="json", help="Print one JSON object on standard output and nothing else.")
]
Pretrained = Annotated[
    FlagCreatePairsOff[bool], arg(name="pretrained", help="Use the official weights of a model's name.")
]
RunName = Annotated[Positional[str], arg(metavar="RUN", help="A run folder, or a model's name.")]
Images = Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...")]
OptionalData = Annotated[Positional[str | None], arg(metavar="[DATA]")]


def named(images: tuple[str, ...]) -> list[Path]:
    """The files that IMAGE... names."""
    from vitrail.data.files import find_images

    found = find_images(images)
    if not found:
        raise UserError(f"{' '.join(images) or 'IMAGE...'} names no image; give files, folders or patterns")
    return found


def console() -> Console:
    """Standard output for tables of users' own words, which are no markup. A pipe has no width to wrap at."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def print_damaged(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"left out: {sentence}", file=sys.stderr)
