"""The verbs that take a recipe's flags: `vitrail train` makes a run, `vitrail lr-find` looks for its learning rate."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from vitrail import recipes
from vitrail.commands.say import Json, OptionalData, print_json
from vitrail.errors import UserError
from vitrail.recipe import Recipe, smoke
from vitrail.training.progress import METRICS

DataName = Annotated[
    OptionalData, arg(help="digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.")
]
RecipeName = Annotated[
    str | None,
    arg(
        help="A published way to train (`vitrail recipes`); the flags below change it. Without: quickstart on digits, "
        "scratch on anything else."
    ),
]
Smoke = Annotated[
    FlagCreatePairsOff[bool], arg(name="smoke", help="Try the recipe: the same code on 8 images, batches of 4.")
]
Settings = Annotated[Recipe, arg(name="")]


def train(arguments: list[str]) -> None:
    """`vitrail train`: the flags are the fields of a recipe, and the recipe that they change is one of the flags."""
    name = _train_arguments(recipes.find_recipe("scratch"), arguments)["recipe"]
    chosen = _train_arguments(recipes.find_recipe(name), arguments)
    from vitrail import verbs

    if chosen["resume"] and chosen["changed"]:
        raise UserError(f"--resume {chosen['resume']} goes on with that run's own recipe; give no other settings")
    if chosen["processes"] > 1 and "RANK" not in os.environ:  # it is set in the processes that this starts
        from vitrail.training.launch import launch

        folder = Path(chosen["resume"] or chosen["out"] or verbs.fresh_folder(chosen["config"]))
        named = [] if chosen["resume"] or chosen["out"] else ["--out", str(folder)]
        launch([*arguments, *named], folder, chosen["processes"], chosen["max_restarts"])
        return
    if chosen["resume"]:
        folder = verbs.train(resume=chosen["resume"])
    else:
        folder = verbs.train(chosen["config"], out=chosen["out"])
    if os.environ.get("RANK", "0") == "0":
        _print_outcome(folder, chosen["as_json"])


def _print_outcome(folder: Path, as_json: bool) -> None:
    final = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"run": str(folder), "report": str(folder / "report.html"), **final})
    print(
        f"{final['split']} {METRICS[final['metric']]} {final[final['metric']]:.2%} ({final['n']:,} images)\n"
        f"run      {folder}\n"
        f"report   {folder / 'report.html'}",
        file=sys.stderr,
    )
    if final["metric"].startswith("patch"):  # it has learned no classes
        verbs = [f"train DATA --initial-checkpoint {folder / 'model.safetensors'} ...", f"probe {folder}"]
    else:
        verbs = [f"predict {folder} IMAGE...", f"explain {folder} IMAGE...", f"eval {folder}"]
    print("next     " + "\n         ".join(f"vitrail {verb}" for verb in verbs), file=sys.stderr)


def _train_arguments(default: Recipe, arguments: list[str]) -> dict[str, Any]:
    """What the command line of `train` says, where `default` is the recipe that its flags change."""

    def read(
        source: DataName = None,
        /,
        *,
        recipe: RecipeName = None,
        out: str | None = None,
        resume: str | None = None,
        processes: int = 1,
        max_restarts: int = 0,
        smoke_test: Smoke = False,
        as_json: Json = False,
        config: Settings = default,
    ) -> dict[str, Any]:
        """Train a model on images; without DATA, on 1,797 real digits, in a minute.

        Args:
            out: The run folder to make. Without: runs/DATA-MODEL-1.
            resume: Go on with this run folder instead of starting one.
            processes: Train with so many processes of this machine, one a GPU (several machines: torchrun).
            max_restarts: How often processes that were killed are started again, from the last checkpoint.
        """
        changed = bool(source or recipe or out or smoke_test or config != default)
        name, config = _settled(source, recipe, smoke_test, config)
        return {
            "recipe": name,
            "out": out,
            "resume": resume,
            "processes": processes,
            "max_restarts": max_restarts,
            "as_json": as_json,
            "config": config,
            "changed": changed,
        }

    said: dict[str, Any] = tyro.cli(read, prog="vitrail train", args=arguments)
    return said


def lr_find(arguments: list[str]) -> None:
    """`vitrail lr-find`: as train, but nothing is kept except a picture."""
    name = _lr_find_arguments(recipes.find_recipe("scratch"), arguments)["recipe"]
    chosen = _lr_find_arguments(recipes.find_recipe(name), arguments)
    from vitrail.training.lr_find import draw, lr_find

    config = chosen["config"]
    test = lr_find(config)
    picture = draw(test, chosen["out"], f"{config.model} on {config.data.source}, {config.optim.name}")
    if chosen["as_json"]:
        print_json({**asdict(test), "picture": str(picture)})
    else:
        print(f"suggested --optim.lr {test.suggestion:.2g}")
        print(f"{picture}  ({test.ended}, at {test.lrs[-1]:.2g})", file=sys.stderr)


def _lr_find_arguments(default: Recipe, arguments: list[str]) -> dict[str, Any]:
    """What the command line of `lr-find` says, where `default` is the recipe that its flags change."""

    def read(
        source: DataName = None,
        /,
        *,
        recipe: RecipeName = None,
        out: Path = Path("lr-find.png"),
        smoke_test: Smoke = False,
        as_json: Json = False,
        config: Settings = default,
    ) -> dict[str, Any]:
        """Look for a learning rate: 100 updates while it grows from 1e-7 to 10, of which nothing is kept.

        Args:
            out: The PNG file to write: the loss over the learning rate.
        """
        name, config = _settled(source, recipe, smoke_test, config)
        return {"recipe": name, "out": out, "as_json": as_json, "config": config}

    said: dict[str, Any] = tyro.cli(read, prog="vitrail lr-find", args=arguments)
    return said


def _settled(source: str | None, recipe: str | None, smoke_test: bool, config: Recipe) -> tuple[str, Recipe]:
    """The name of the recipe that is meant, and `config` with the data that are named."""
    name = recipe or ("quickstart" if (source or config.data.source) == "digits" else "scratch")
    if source is not None:
        config = replace(config, data=replace(config.data, source=source))
    return name, smoke(config) if smoke_test else config
