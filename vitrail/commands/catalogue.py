"""The verbs that tell what there is: models, show, recipes, copy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

from rich.table import Column, Table
from tyro.conf import Positional, arg

from vitrail import models, recipes
from vitrail.commands.say import Json, console, print_json
from vitrail.errors import UserError, did_you_mean


def list_models(
    pattern: Annotated[Positional[str], arg(metavar="[PATTERN]")] = "*", /, *, as_json: Json = False
) -> None:
    """Every architecture that matches, with the figures its paper or release prints.

    Args:
        pattern: Shell wildcards; without one, any name that contains it.
    """
    rows = models.summaries(pattern)
    if not rows:
        raise UserError(f"no model matches '{pattern}'{did_you_mean(pattern, models.list_models())}")
    if as_json:
        print_json({"models": rows})
        return
    table = Table(Column("name", no_wrap=True), "params", "FLOPs", "top-1", "paper")
    for row in rows:
        table.add_row(*(row.get(key, "") for key in ("name", "params", "FLOPs", "top-1")), row["paper"])
    console().print(table)
    print(f"{len(rows)} names", file=sys.stderr)


def show(name: Annotated[Positional[str], arg(metavar="NAME")], /, *, as_json: Json = False) -> None:
    """One architecture: its paper, what differs, its settings, its printed figures, where its weights live.

    Args:
        name: A name from `vitrail models`, or ./my_file.py:name.
    """
    about = models.describe(name)
    if as_json:
        print_json(about)
        return
    print(about["about"])
    for key in ("file", "config", "printed", "weights"):
        print(f"{key:<9}{about[key]}")


def list_recipes(*, as_json: Json = False) -> None:
    """The published ways to train, one line each."""
    known = recipes.list_recipes()
    if as_json:
        print_json({"recipes": known})
        return
    width = max(map(len, known)) + 2
    for name, about in known.items():
        print(f"{name:<{width}}{about}")


def copy(
    family: Annotated[Positional[str], arg(metavar="FAMILY")], file: Annotated[Positional[Path], arg(metavar="FILE")], /
) -> None:
    """Copy an architecture's file, to change it and train it.

    Args:
        family: A file of vitrail/models without its ending, such as vit.
        file: Where to, such as my_vit.py.
    """
    source = models.FOLDER / f"{family}.py"
    named = models.list_models()
    stems = sorted(path.stem for path in models.FOLDER.glob("[a-z]*.py"))
    known = [stem for stem in stems if any(name.startswith(stem) for name in named)]
    if family not in known:
        raise UserError(f"no family '{family}'{did_you_mean(family, known)}; there are {', '.join(known)}")
    if file.suffix != ".py":
        raise UserError(f"{file} would be no Python file; end its name in .py")
    if file.exists():
        raise UserError(f"{file} exists; name another file")
    try:
        shutil.copyfile(source, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another folder") from error
    print(f"{file}: change it, then `vitrail train DATA --model {file}:NAME` with a NAME from its VARIANTS")
