"""The one public verb that needs two floors: train a run, then write its report."""

from __future__ import annotations

import re
from pathlib import Path

from vitrail.comparison.report import write_report
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.training import loop
from vitrail.training.distributed import is_main, process_group, told


def train(recipe: Recipe | None = None, *, out: str | Path | None = None, resume: str | Path | None = None) -> Path:
    """Train `recipe` into the run folder `out` (runs/<data>-<model>-<n> unless given), or go on with the run `resume`.

    Returns the folder of the finished run: model.safetensors, classes.json, recipe.json, log.jsonl, report.html.
    Raises UserError for what the user can mend, errors.Interrupted after Ctrl-C or SIGTERM.
    """
    if (recipe is None) == (resume is None):
        raise UserError("give either a recipe to start with or a run to resume")
    with process_group():
        if recipe is None:
            folder = loop.resume(Path(str(resume)))
        else:
            folder = loop.fit(recipe, Path(out) if out else told(fresh_folder(recipe)))
        if is_main():
            write_report(folder)
    return folder


def fresh_folder(recipe: Recipe) -> Path:
    """A run folder that does not exist yet, named for the data and the model."""
    data = re.sub(r"[^\w.-]+", "-", Path(recipe.data.source.removeprefix("hf:")).stem).strip("-.") or "data"
    model = recipe.model.rpartition(":")[2]
    number = 1
    while (folder := Path("runs") / f"{data}-{model}-{number}").exists():
        number += 1
    return folder
