"""One paper, one file of functions that return a Recipe. `deit` is `deit.deit()`, `deit/small` is `deit.small()`."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from vitrail.errors import UserError, did_you_mean
from vitrail.recipe import Recipe


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UserError for an unknown one, naming the nearest."""
    known = list_recipes()
    if name not in known:
        raise UserError(f"no recipe '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    file, _, function = name.partition("/")
    module = importlib.import_module(f"vitrail.recipes.{file}")
    recipe: Recipe = getattr(module, function or file)()
    return recipe


def list_recipes() -> dict[str, str]:
    """Name -> the first line of its docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        module = importlib.import_module(f"vitrail.recipes.{path.stem}")
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
                full = path.stem if name == path.stem else f"{path.stem}/{name}"
                found[full] = (function.__doc__ or "").splitlines()[0]
    return found
