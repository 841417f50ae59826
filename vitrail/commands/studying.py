"""The verb that puts published claims to the test: `vitrail study`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vitrail.commands.say import Json, print_json
from vitrail.comparison.studies import find_study, list_studies
from vitrail.errors import UserError


def study(
    name: Annotated[Positional[str], arg(metavar="[NAME]")] = "",
    /,
    *,
    data: str = "cifar10",
    scale: Literal["smoke", "cpu", "gpu"] = "cpu",
    seeds: int = 3,
    out: Path = Path("studies"),
    listed: Annotated[FlagCreatePairsOff[bool], arg(name="list")] = False,
    as_json: Json = False,
) -> None:
    """Re-run a published claim on one's own images: train its arms, compare them, give a verdict with intervals.

    Args:
        name: A study from `vitrail study --list`.
        data: Small images: cifar10 and kin, a .npz, a folder (larger images are made 32 x 32).
        scale: smoke: does it run; cpu: minutes on two cores; gpu: a larger model, more images and epochs.
        seeds: Each arm is trained so many times; the interval needs two, and with more it is narrower.
        out: The folder of runs and findings; finished runs in it are not repeated.
        listed: Name all studies and stop.
    """
    if listed:
        known = list_studies()
        if as_json:
            print_json({"studies": known})
            return
        for one, about in known.items():
            print(f"{one:<20}{about}")
        return
    if not name:
        raise UserError("name a study; `vitrail study --list` lists them")
    chosen = find_study(name)
    from vitrail.comparison.studies.findings import arm_table, contrast_table
    from vitrail.comparison.studies.trial import try_out

    found = try_out(chosen, data=data, scale=scale, seeds=seeds, out=out, say=lambda line: print(line, file=sys.stderr))
    if as_json:
        print_json(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))
    else:
        print(f"{contrast_table(found)}\n\n{arm_table(found)}\n\n{found.verdict}")
    print(f"written to {out / name}.md, .json and .png", file=sys.stderr)
