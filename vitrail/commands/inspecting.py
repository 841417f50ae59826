"""The verb that shows what a model has learned: `vitrail inspect`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vitrail.commands.say import Json, Pretrained, RunName


def inspect(
    run: RunName,
    more: Annotated[Positional[tuple[str, ...]], arg(metavar="[RUN2] [DATA]")] = (),
    /,
    *,
    out: Path = Path("inspection"),
    images: int = 256,
    only: str = "",
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """One page of what a model has learned, by every analysis that it allows, beside another model if one is named.

    Args:
        more: A second run folder or model's name, and images: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a
            .csv, or tar shards. Without: those that the first was trained on.
        out: The folder for inspection.html and inspection.json.
        images: At most so many held-out images, drawn evenly from the classes.
        only: Some analyses, separated by commas: distance, positions, filters, features, receptive, cka, probes,
            residual, localisation, landscape, maps.
    """
    from vitrail.comparison.inspection import inspect

    other, data = _told_apart(more)
    names = [name.strip() for name in only.split(",") if name.strip()]
    page = inspect(run, other, data, out=out, images=images, only=names, pretrained=pretrained)
    numbers = page.with_suffix(".json")
    if as_json:
        found = json.loads(numbers.read_text(encoding="utf-8"))
        print(json.dumps({"page": str(page), **found}, ensure_ascii=False))
    else:
        print(f"page     {page}\nnumbers  {numbers}", file=sys.stderr)


def _told_apart(words: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The second run and the images, whichever of them `words` name."""
    from vitrail.errors import UserError
    from vitrail.models import list_models

    def is_model(word: str) -> bool:
        path, colon, _ = word.rpartition(":")
        return word in list_models() or (Path(word) / "recipe.json").is_file() or bool(colon and path.endswith(".py"))

    if len(words) > 2:
        raise UserError(f"inspect takes a run, a second one and one set of images, not also {' '.join(words[2:])}")
    if len(words) == 2:
        if not is_model(words[0]):
            raise UserError(f"'{words[0]}' is neither a run folder nor a model; give RUN RUN2 DATA in this order")
        return words[0], words[1]
    if words and is_model(words[0]):
        return words[0], None
    return None, words[0] if words else None
