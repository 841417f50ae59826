"""The verbs that fit something small to models that stay as they are: probe, ensemble."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vitrail.commands.say import Json, OptionalData, Pretrained, RunName, console, print_damaged, print_json


def probe(
    run: RunName,
    data: OptionalData = None,
    /,
    *,
    method: Literal["linear", "fewshot", "knn"] = "linear",
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """How good a model's features are: a small classifier on them, scored on held-out images.

    Args:
        data: Any images with classes; they need not be the model's. Without: those that the run was trained on.
        method: linear: logistic regression; fewshot: least squares from 1 to 25 images a class; knn: nearest images.
    """
    from vitrail.training.probe import probe

    result = probe(run, data, method=method, pretrained=pretrained)
    if as_json:
        print_json(result)
        return
    console().print(_TABLES[method](result["rows"]))
    print_damaged(result["damaged"])
    print(
        f"{result['top1']:.2%} of {result['n']:,} {result['split']} images of {result['data']} right ({_how(result)}; "
        f"{result['dim']} features of {result['run']}, {result['weights']})"
    )


def ensemble(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN RUN ...")],
    /,
    *,
    data: str | None = None,
    vote: Literal["soft", "hard"] = "soft",
    weights: Literal["uniform", "accuracy", "log-odds", "greedy"] = "uniform",
    calibrate: FlagCreatePairsOff[bool] = False,
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Several models vote: weights from validation images, score on test images.

    Args:
        runs: Run folders, or names of models, all with the same classes.
        data: Images with those classes. Without: those that the first run was trained on.
        vote: soft: probabilities are added up; hard: first choices.
        weights: What a member's vote counts; greedy: how often forward selection takes it.
        calibrate: Divide each member's logits by the temperature that suits the validation images.
    """
    from vitrail.training.ensemble import ensemble

    result = ensemble(runs, data, vote=vote, weights=weights, calibrate=calibrate, pretrained=pretrained)
    if as_json:
        print_json(result)
        return
    table = Table("member", "weight", "val", "test", "95 %", *(["temperature"] if calibrate else []))
    for member in result["members"]:
        heat = [f"{member['temperature']:.2f}"] if calibrate else []
        table.add_row(member["run"], f"{member['weight']:.3f}", f"{member['val_top1']:.2%}", *_scored(member), *heat)
    table.add_row("ensemble", "", "", *_scored(result))
    console().print(table)
    print_damaged(result["damaged"])
    for note in result["notes"]:
        print(note, file=sys.stderr)
    verdict = "beats" if result["beats_best"] else "does not beat"
    print(
        f"{result['top1']:.2%} of {result['n']:,} images of {result['data']} right; it {verdict} the best member, "
        f"{result['best']} ({result['gained']} images gained, {result['lost']} lost, p = {result['p']:.2g})"
    )


def _scored(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['top1']:.2%}", " to ".join(f"{end:.2%}" for end in row["interval"])


def _how(result: dict[str, Any]) -> str:
    if result["method"] == "linear":
        end = "" if result["converged"] else ", not converged"
        return f"logistic regression on {result['n_train']:,} images, l2 {result['l2']:g}{end}"
    if result["method"] == "fewshot":
        return "10 images a class, mean of 3 draws"
    return f"{result['rows'][-1]['k']} nearest of {result['n_train']:,} images, weighted"


def _linear(rows: list[dict[str, Any]]) -> Table:
    table = Table("l2", "on a fifth of train")
    for row in rows:
        table.add_row(f"{row['l2']:g}", f"{row['chosen_top1']:.2%}")
    return table


def _fewshot(rows: list[dict[str, Any]]) -> Table:
    table = Table("images a class", "right", "spread", "images", "classes with fewer")
    for row in rows:
        fewer = f"{len(row['fewer'])}: {', '.join(row['fewer'][:5])}" if row["fewer"] else ""
        table.add_row(str(row["shots"]), f"{row['top1']:.2%}", f"{row['spread']:.2%}", str(row["n_train"]), fewer)
    return table


def _knn(rows: list[dict[str, Any]]) -> Table:
    table = Table("neighbours", "majority", "weighted")
    for row in rows:
        table.add_row(str(row["k"]), f"{row['majority']:.2%}", f"{row['weighted']:.2%}")
    return table


_TABLES = {"linear": _linear, "fewshot": _fewshot, "knn": _knn}
