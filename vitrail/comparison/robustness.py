"""How much of a model's accuracy is left when its images get worse: one pass over held-out images, many versions each.

corruptions   ImageNet-C's, on the square that the model sees, before normalisation. Benchmarking Neural Network
              Robustness to Common Corruptions and Perturbations. Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261
occlusion     cells of the picture dropped, shuffle: dealt out anew; see occlusion.py
attacks       FGSM and PGD in linf, ten steps of a quarter of the radius; see attacks.py
resolution    detail taken away (smaller by bilinear resampling, then as large again), and the same square, resized, at
              other input sizes where the model takes them: the field of view stays, things have other sizes in pixels

Caution   errors are plain shares of images. mCE is them over a baseline's, so two mCE compare only over one baseline;
          the published ones are over AlexNet's, on 50,000 images stored as JPEG, which costs a little more. Shares of
          few images are uncertain: see the interval.
Cost      of an image 1 + 15 x 5 passes for the corruptions, some 40 for occlusion, shuffle and resolution, and for the
          attacks 4 x (2 + 11), of which 4 x (1 + 10) go backwards too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.comparison.figures import wilson
from vitrail.comparison.occlusion import cells
from vitrail.comparison.robustness_conditions import Asked, Tally, input_side, look
from vitrail.comparison.robustness_picture import picture as picture
from vitrail.data.limit import limited
from vitrail.data.sources import Source
from vitrail.errors import UserError, did_you_mean
from vitrail.run import Run, load
from vitrail.training.features import said, scored_split, source_of
from vitrail.training.metrics import mean

SEVERITIES, ATTACKS = (1, 2, 3, 4, 5), ("fgsm", "pgd")
ALEXNET = "alexnet-published"
ALEXNET_CLEAN = 1 - 0.56522  # torchvision's figure for this network
ALEXNET_ERRORS = {  # google-research/augmix, imagenet.py: mean over the five severities
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def robustness(
    run: str | Path | Run,
    data: str | None = None,
    *,
    baseline: str | Path | Run | Mapping[str, Any] | None = None,
    limit: int | None = 500,
    severities: Sequence[int] = SEVERITIES,
    corruptions: Sequence[str] | None = None,
    attacks: Sequence[str] = ATTACKS,
    pretrained: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Accuracy of `run` (a run folder, or a model's name) on `limit` held-out images, drawn evenly from the classes of
    its own data or of `data`, as they are and made worse in the ways above.

    `baseline` is what mCE is relative to: another run, an earlier result of this function on the same images, or
    "alexnet-published" for ImageNet. `corruptions` None are the 15 of the benchmark; severity 0 leaves an image as it
    is. Batches of `batch_size` share their dropped cells and their shuffle. `progress` None: a bar in a terminal.

    Returns what JSON can hold: run, model, weights, data, split, n, classes (their count), seed, damaged (names),
    notes, clean, corruptions, occlusion, shuffle, attacks, resolution. Errors and accuracies (top1) are shares of n.
    The same for the same arguments. Raises UserError for data with several labels an image or other classes than the
    run's, and for unknown names.
    """
    run = _classifier(run, pretrained)
    names, kinds = _known(corruptions), list(dict.fromkeys(attacks))
    asked = _checked(Asked(names, sorted(set(severities)), kinds, seed, batch_size), limit)
    source = source_of(run, data)
    split = scored_split(source)
    source = replace(source, splits={split: source.splits[split]})
    source = source if limit is None else limited(source, limit, seed)
    shown = sys.stderr.isatty() if progress is None else progress
    tally = look(run, source, split, asked, progress=shown)
    result = _head(run, source, split, seed, tally) | {
        "corruptions": _corruption_table(tally, asked),
        "occlusion": _occlusion_table(tally, run),
        "shuffle": tally.curve("shuffle", "grid"),
        "attacks": [
            {"attack": name, "norm": "linf", **row} for name in asked.attacks for row in tally.curve(name, "eps_255")
        ],
        "resolution": {"coarser": tally.curve("coarser", "factor"), "input": _sizes(tally, run)},
    }
    if baseline is not None and result["corruptions"]["rows"]:
        result["corruptions"] |= relative_to(_baseline(baseline, result, source, asked, pretrained, shown), result)
    return result


def relative_to(other: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """mCE and relative mCE of a result, in percent of `other`, a result on the same images, and the rows with both.

    CE of a corruption = sum over severities of the error / the same of `other`. Relative CE: of the error beyond the
    clean one. Where `other` leaves nothing to divide by, a CE is None; the means are over the rest.
    """
    theirs = {row["corruption"]: row["errors"] for row in other["corruptions"]["rows"]}
    clean, other_clean = 1 - result["clean"]["top1"], 1 - other["clean"]["top1"]
    rows = []
    for row in result["corruptions"]["rows"]:
        errors, others = row["errors"], theirs[row["corruption"]]
        beyond, theirs_beyond = sum(errors) - clean * len(errors), sum(others) - other_clean * len(others)
        ce = sum(errors) / sum(others) if sum(others) else None
        rows.append({**row, "ce": ce, "relative_ce": beyond / theirs_beyond if theirs_beyond > 1e-9 else None})
    mce, relative = (mean([row[name] for row in rows if row[name] is not None]) for name in ("ce", "relative_ce"))
    return {
        "rows": rows,
        "baseline": other["run"],
        "mce": None if mce is None else 100 * mce,
        "relative_mce": None if relative is None else 100 * relative,
    }


# ---------------------------------------------------------------------- what is asked


def _classifier(run: str | Path | Run, pretrained: bool) -> Run:
    """A run that gives one class an image."""
    opened = load(run, pretrained=pretrained)
    if opened.recipe.task in ("masked_patches", "multilabel"):
        learned = "masked patches, not classes" if opened.recipe.task == "masked_patches" else "several labels an image"
        raise UserError(f"{said(opened)} has learned {learned}; robustness is measured of models with one label each")
    return opened


def _known(corruptions: Sequence[str] | None) -> list[str]:
    from vitrail.comparison.corruptions import CORRUPTIONS, EXTRA

    known = [*CORRUPTIONS, *EXTRA]
    for name in corruptions or ():
        if name not in known:
            raise UserError(f"no corruption '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    return list(dict.fromkeys(CORRUPTIONS if corruptions is None else corruptions))


def _checked(asked: Asked, limit: int | None) -> Asked:
    if (limit is not None and limit < 1) or asked.batch_size < 1:
        raise UserError(f"limit is {limit} and batch_size {asked.batch_size}; both must be at least 1")
    if not set(asked.severities) <= set(range(6)) or (asked.corruptions and not asked.severities):
        raise UserError(f"severities are {asked.severities}; give some of 1 to 5 (0 leaves images as they are)")
    wrong = [name for name in asked.attacks if name not in ATTACKS]
    if wrong:
        raise UserError(f"no attack '{wrong[0]}'{did_you_mean(wrong[0], ATTACKS)}; there are {', '.join(ATTACKS)}")
    return asked


def _baseline(
    baseline: str | Path | Run | Mapping[str, Any],
    result: Mapping[str, Any],
    source: Source,
    asked: Asked,
    pretrained: bool,
    progress: bool,
) -> Mapping[str, Any]:
    """The result that mCE divides by, from whatever names it."""
    if isinstance(baseline, Mapping):
        return _same_images(baseline, result)
    if baseline == ALEXNET:
        return _alexnet(source, asked)
    run = _classifier(baseline, pretrained and not isinstance(baseline, Run) and not Path(baseline).is_dir())
    split = result["split"]
    tally = look(run, source, split, asked, alone=True, progress=progress)
    if tally.damaged != result["damaged"] or tally.notes:
        raise UserError(f"{said(run)} cannot be the baseline: {'; '.join(tally.notes) or 'it could read other images'}")
    return _head(run, source, split, asked.seed, tally) | {"corruptions": _corruption_table(tally, asked)}


def _same_images(other: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any]:
    """`other`, if it may be divided by."""
    for what in ("data", "split", "n", "seed", "damaged"):
        if other[what] != result[what]:
            raise UserError(
                f"the baseline {other['run']} was measured on {what} {other[what]} and {result['run']} on "
                f"{result[what]}; measure both on the same images"
            )
    mine, theirs = result["corruptions"], other["corruptions"]
    names, known = ({row["corruption"] for row in table["rows"]} for table in (mine, theirs))
    if mine["severities"] != theirs["severities"] or not names <= known:
        raise UserError(f"the baseline {other['run']} was measured with other corruptions; measure it with the same")
    return other


def _alexnet(source: Source, asked: Asked) -> dict[str, Any]:
    """AlexNet's published errors, as a result."""
    if len(source.classes) != 1000 or sorted(asked.severities) != list(SEVERITIES):
        raise UserError(
            f"AlexNet's published errors are of ImageNet's 1000 classes at severities 1 to 5, and {source.name} has "
            f"{len(source.classes)} classes at {asked.severities}; name a run of your own as the baseline"
        )
    unknown = [name for name in asked.corruptions if name not in ALEXNET_ERRORS]
    if unknown:
        raise UserError(f"AlexNet's error under {unknown[0]} was not published; leave it out, or name another baseline")
    rows = [{"corruption": name, "errors": [ALEXNET_ERRORS[name]] * len(SEVERITIES)} for name in asked.corruptions]
    return {"run": ALEXNET, "clean": {"top1": 1 - ALEXNET_CLEAN}, "corruptions": {"rows": rows}}


# ---------------------------------------------------------------------- what was found


def _head(run: Run, source: Source, split: str, seed: int, tally: Tally) -> dict[str, Any]:
    top1 = tally.top1()
    return {
        "run": said(run),
        "model": run.recipe.model,
        "weights": run.weights,
        "data": source.name,
        "split": split,
        "n": tally.n,
        "classes": len(source.classes),
        "seed": seed,
        "damaged": tally.damaged,
        "notes": tally.notes,
        "clean": {
            "top1": top1,
            "interval": list(wilson(top1, tally.n)),
            "calibration_error": tally.calibration(),
        },
    }


def _corruption_table(tally: Tally, asked: Asked) -> dict[str, Any]:
    """Rows by corruption, means by group and over all; mCE is left open."""
    rows: list[dict[str, Any]] = []
    for name in asked.corruptions:
        keys = [(name, severity) for severity in asked.severities]
        if keys[0] in tally.right:
            errors = [1 - tally.top1(key) for key in keys]
            rows.append(
                {
                    "corruption": name,
                    "group": _group(name),
                    "errors": errors,
                    "mean": mean(errors),
                    "calibration_errors": [tally.calibration(key) for key in keys],
                    "ce": None,
                    "relative_ce": None,
                }
            )
    groups = dict.fromkeys(row["group"] for row in rows)
    return {
        "severities": list(asked.severities),
        "rows": rows,
        "groups": {group: mean([row["mean"] for row in rows if row["group"] == group]) for group in groups},
        "mean_error": mean([row["mean"] for row in rows]),
        "calibration_error": mean([one for row in rows for one in row["calibration_errors"]]),
        "baseline": None,
        "mce": None,
        "relative_mce": None,
    }


def _group(name: str) -> str:
    from vitrail.comparison.corruptions import GROUPS

    return next((group for group, members in GROUPS.items() if name in members), "extra")


def _occlusion_table(tally: Tally, run: Run) -> dict[str, Any]:
    """Curves over the share of the cells dropped; of salient cells, over the mass of the map too."""
    side = run.recipe.data.img_size or 1
    curves: dict[str, Any] = {
        name.replace(" ", "_"): tally.curve(name, "dropped") for name in ("random black", "random mean colour")
    }
    for name in ("salient", "non-salient"):
        rows = tally.curve(name, "mass")
        curves[name.replace("-", "_")] = [{**row, "dropped": tally.share((name, row["mass"]))} for row in rows]
    return {"cells": cells(side), "map": tally.map, **curves}


def _sizes(tally: Tally, run: Run) -> list[dict[str, Any]]:
    """Other input sizes, smallest first: what they came to, or why they are not taken."""
    side = run.recipe.data.img_size or 1
    found: Iterable[dict[str, Any]] = (
        *({**row, "refused": None} for row in tally.curve("size", "factor")),
        *({"factor": factor, "top1": None, "refused": why} for factor, why in tally.refused.items()),
    )
    return [
        {"factor": row["factor"], "side": input_side(side, row["factor"]), **row}
        for row in sorted(found, key=lambda row: row["factor"])
    ]
