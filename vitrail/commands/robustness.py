"""The verb that makes images worse and looks how long a model still knows them: `vitrail robustness`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import arg

from vitrail.commands.say import Json, OptionalData, Pretrained, RunName, console, print_damaged, print_json


def robustness(
    run: RunName,
    data: OptionalData = None,
    /,
    *,
    baseline: Annotated[str | None, arg(metavar="RUN2")] = None,
    limit: int = 500,
    out: Path | None = None,
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Accuracy under ImageNet-C's corruptions, occlusion, shuffled cells, attacks and other resolutions.

    Args:
        data: Images with the model's classes. Without: those that the run was trained on.
        baseline: What mCE is relative to: a run, a model's name, or alexnet-published where the data is ImageNet.
        limit: At most so many held-out images, drawn evenly from the classes.
        out: A folder for robustness.png and robustness.json.
    """
    from vitrail.comparison.robustness import picture, robustness

    result = robustness(run, data, baseline=baseline, limit=limit, pretrained=pretrained)
    if out is not None:
        _write(result, picture(result), out)
    if as_json:
        print_json(result)
    else:
        _show(result)
    if out is not None:
        print(f"written to {out / 'robustness.png'} and .json", file=sys.stderr)


def _write(result: dict[str, Any], picture: bytes, out: Path) -> None:
    from vitrail import checkpoint
    from vitrail.errors import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another --out") from error
    checkpoint.write_file(out / "robustness.png", picture)
    checkpoint.write_file(out / "robustness.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def _show(result: dict[str, Any]) -> None:
    clean, worse = result["clean"], result["corruptions"]
    if worse["rows"]:
        console().print(_corruptions(worse))
    console().print(_versions(result))
    print_damaged(result["damaged"])
    for note in result["notes"]:
        print(note, file=sys.stderr)
    for size in result["resolution"]["input"]:
        if size["refused"]:
            print(f"not scored at {size['side']} x {size['side']}: {size['refused']}", file=sys.stderr)
    low, high = clean["interval"]
    print(
        f"{clean['top1']:.2%} of {result['n']:,} {result['split']} images of {result['data']} right as they are "
        f"(95% interval {low:.1%} to {high:.1%}; {result['run']}, {result['weights']})"
    )
    if worse["rows"]:
        over = "" if worse["mce"] is None else f", mCE {worse['mce']:.1f}{_relative(worse)} over {worse['baseline']}"
        print(
            f"corrupted, {worse['mean_error']:.2%} wrong on average{over}; calibration error "
            f"{worse['calibration_error']:.3f}, {clean['calibration_error']:.3f} as they are"
        )


def _relative(worse: dict[str, Any]) -> str:
    return "" if worse["relative_mce"] is None else f" (relative {worse['relative_mce']:.1f})"


def _corruptions(worse: dict[str, Any]) -> Table:
    """Errors by corruption and severity, and the means of the groups."""
    severities = [f"severity {number}" for number in worse["severities"]]
    more = ["CE"] if worse["baseline"] else []
    table = Table("wrong under", "group", *severities, "mean", *more, "calibration error")
    for row in worse["rows"]:
        ce = [] if not more else ["-" if row["ce"] is None else f"{row['ce']:.1%}"]
        calibration = sum(row["calibration_errors"]) / len(row["calibration_errors"])
        errors = [f"{error:.1%}" for error in row["errors"]]
        table.add_row(row["corruption"], row["group"], *errors, f"{row['mean']:.1%}", *ce, f"{calibration:.3f}")
    table.add_section()
    for group, mean in worse["groups"].items():
        table.add_row(f"{group}, mean", "", *[""] * len(severities), f"{mean:.1%}", *[""] * len(more), "")
    return table


def _versions(result: dict[str, Any]) -> Table:
    """The other versions of the images, a curve a row."""
    table = Table("right of images", "at")
    occlusion = result["occlusion"]
    cells = f"{occlusion['cells']} x {occlusion['cells']} cells dropped"
    for name, about in (
        ("random_black", f"some of {cells}, black"),
        ("random_mean_colour", f"some of {cells}, mean colour"),
        ("salient", f"those of {cells} that {occlusion['map']} finds"),
        ("non_salient", f"those of {cells} that {occlusion['map']} does not find"),
    ):
        if occlusion[name]:
            table.add_row(about, _curve(occlusion[name], lambda row: f"{row['dropped']:.0%}"))
    table.add_row("shuffled cells", _curve(result["shuffle"], lambda row: f"{row['grid']} x {row['grid']}"))
    for name in dict.fromkeys(row["attack"] for row in result["attacks"]):
        rows = [row for row in result["attacks"] if row["attack"] == name]
        table.add_row(f"attacked by {name}, pixels within", _curve(rows, lambda row: f"{row['eps_255']}/255"))
    resolution = result["resolution"]
    table.add_row("made smaller and large again", _curve(resolution["coarser"], lambda row: f"{row['factor']:g}"))
    taken = [row for row in resolution["input"] if row["top1"] is not None]
    if taken:
        table.add_row("input of other sizes", _curve(taken, lambda row: f"{row['side']} x {row['side']}"))
    return table


def _curve(rows: list[dict[str, Any]], at: Any) -> str:
    return ", ".join(f"{at(row)}: {row['top1']:.1%}" for row in rows)
