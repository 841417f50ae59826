"""The verb that makes a run: `vitrail train`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from vitrail import recipes
from vitrail.commands.say import Json, OptionalData, print_json
from vitrail.errors import UserError
from vitrail.recipe import Recipe, smoke


def train(arguments: list[str]) -> None:
    """`vitrail train`: the flags are the fields of a recipe, and the recipe that they change is one of the flags."""
    name = _train_arguments(recipes.find_recipe("scratch"), arguments)["recipe"]
    chosen = _train_arguments(recipes.find_recipe(name), arguments)
    from vitrail.verbs import train as train_run

    if chosen["resume"]:
        if chosen["changed"]:
            raise UserError(f"--resume {chosen['resume']} goes on with that run's own recipe; give no other settings")
        folder = train_run(resume=chosen["resume"])
    else:
        folder = train_run(chosen["config"], out=chosen["out"])
    final = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    if chosen["as_json"]:
        print_json({"run": str(folder), "report": str(folder / "report.html"), **final})
    print(
        f"{final['split']} accuracy {final['top1']:.2%} ({final['n']:,} images)\n"
        f"run      {folder}\n"
        f"report   {folder / 'report.html'}\n"
        f"next     vitrail predict {folder} IMAGE...\n"
        f"         vitrail explain {folder} IMAGE...\n"
        f"         vitrail eval {folder}",
        file=sys.stderr,
    )


def _train_arguments(default: Recipe, arguments: list[str]) -> dict[str, Any]:
    """What the command line of `train` says, where `default` is the recipe that its flags change."""

    def read(
        source: OptionalData = None,
        /,
        *,
        recipe: str | None = None,
        out: str | None = None,
        resume: str | None = None,
        smoke_test: Annotated[FlagCreatePairsOff[bool], arg(name="smoke")] = False,
        as_json: Json = False,
        config: Annotated[Recipe, arg(name="")] = default,
    ) -> dict[str, Any]:
        """Train a model on images; without DATA, on 1,797 real digits, in a minute.

        Args:
            source: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
            recipe: A published way to train (`vitrail recipes`); the flags below change it. Without: quickstart on
                digits, scratch on anything else.
            out: The run folder to make. Without: runs/DATA-MODEL-1.
            resume: Go on with this run folder instead of starting one.
            smoke_test: Try the recipe: the same code on 8 images, two steps.
        """
        changed = bool(source or recipe or out or smoke_test or config != default)
        recipe = recipe or ("quickstart" if (source or config.data.source) == "digits" else "scratch")
        if source is not None:
            config = replace(config, data=replace(config.data, source=source))
        return {
            "recipe": recipe,
            "out": out,
            "resume": resume,
            "as_json": as_json,
            "config": smoke(config) if smoke_test else config,
            "changed": changed,
        }

    said: dict[str, Any] = tyro.cli(read, prog="vitrail train", args=arguments)
    return said
