"""The verbs of the command line: each reads its arguments, calls one public function, and shows what it returns."""

from __future__ import annotations

from collections.abc import Callable

import tyro

from vitrail.commands import (
    benching,
    catalogue,
    comparing,
    images,
    inspecting,
    probing,
    robustness,
    studying,
    training,
    using,
)


def run_command(verb: str, arguments: list[str]) -> None:
    """Do what the arguments of `vitrail VERB` say. tyro answers --help and wrong flags, naming the nearest (exit 2)."""
    if verb in WITH_RECIPE:
        WITH_RECIPE[verb](arguments)
    else:
        tyro.cli(COMMANDS[verb], prog=f"vitrail {verb}", args=arguments)


WITH_RECIPE: dict[str, Callable[[list[str]], None]] = {"train": training.train, "lr-find": training.lr_find}
COMMANDS: dict[str, Callable[..., None]] = {
    "eval": using.evaluate,
    "ensemble": probing.ensemble,
    "probe": probing.probe,
    "predict": using.predict,
    "explain": using.explain,
    "inspect": inspecting.inspect,
    "compare": comparing.compare,
    "robustness": robustness.robustness,
    "bench": benching.bench,
    "export": using.export,
    "models": catalogue.list_models,
    "show": catalogue.show,
    "recipes": catalogue.list_recipes,
    "doctor": images.doctor,
    "show-batch": images.show_batch,
    "shard": images.shard,
    "copy": catalogue.copy,
    "study": studying.study,
}
