"""What `vitrail.optimize` makes of four models on this machine's CPU, beside timm's eager fp32 and every single engine.

    python benchmarks/inference.py --runs FOLDER --data DATA      # batches of 1 and 16; about an hour
    python benchmarks/inference.py --runs FOLDER --data DATA --keep         # writes results/inference*.json too
    python benchmarks/inference.py --quick                        # ViT-S and ResNet-50 with random weights, batch 1

FOLDER has runs of `vitrail train DATA --model NAME --data.img-size 224`, each named as its model: engines are chosen by
300 images of those they learned from, and must keep the class of 99 % of them; "held out" is that share of images they
did not learn from. Without a run the weights are random, near ties are many, and only speed is measured.

First every engine in every precision is built and timed after our eager model in one process, as `optimize` does it.
Then timm's model and the fastest that agrees, by precision, answer in turns, each in a process of its own: `speed-up`
is timm's seconds over ours, round by round. Goals: 1.5 in fp32, 2.7 in bf16, 4 in int8.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import contest, keep, ratio, table

MODELS = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ResNet-50": "resnet50",
}
GOALS = {"fp32": 1.5, "bf16": 2.7, "int8": 4.0}
SECONDS = 0.5
"""Of each turn, at least: a single pass after others' turns finds caches cold and threads asleep."""
CHECKED = 1000
"""Held-out images that each precision's choice is checked on."""


class Subject(NamedTuple):
    """One model at one batch size; `run` is a folder, or "" for random weights."""

    name: str
    run: str
    data: str
    batch: int


def prepared(subject: Subject) -> tuple[Any, Any, Any]:
    """The model, images it learned from, held-out images (None with random weights)."""
    import torch

    from vitrail import create_model, load
    from vitrail.data.loader import Loader
    from vitrail.data.sources import open_source
    from vitrail.engines.examples import examples_of_source
    from vitrail.run import preprocessing

    if not subject.run:
        torch.manual_seed(0)
        return create_model(subject.name), torch.randn(16, 3, 224, 224), None
    run, source = load(subject.run), open_source(subject.data)
    split = source.splits.get("test") or source.splits["val"]
    size, transform = min(CHECKED, len(split)), preprocessing(run.recipe.data)
    loader = Loader(split, transform, batch_size=size, seed=0, shuffle=True, workers=0, num_classes=len(source.classes))
    return run.model, examples_of_source(run, source, "train"), next(iter(loader.epoch(0))).images


def tried(subject: Subject) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for every engine in every precision; by precision, the share of held-out classes its fastest keeps."""
    from vitrail.engines import optimize
    from vitrail.engines.choose import ENGINES
    from vitrail.engines.eager import build
    from vitrail.engines.trial import CALIBRATING, in_batches

    model, examples, held_out = prepared(subject)
    agreement = 0.99 if subject.run else 0.0
    found = optimize(model, examples, "int8", batch_size=subject.batch, agreement=agreement, seconds=3600)
    report = [trial._asdict() for trial in found.report]
    shares: dict[str, float] = {}
    if held_out is None:
        return report, shares
    plain = build(model.eval(), examples, subject.batch, "fp32")
    classes = in_batches(plain, held_out, subject.batch).argmax(1)
    for precision in GOALS:
        trial = fastest(report, precision)
        engine = next(e for e in ENGINES if e.name == trial["engine"] and trial["precision"] in e.precisions)
        own = copy.deepcopy(model).requires_grad_(False)
        forward = engine.build(own, examples[:CALIBRATING], subject.batch, trial["precision"])
        shares[precision] = float((in_batches(forward, held_out, subject.batch).argmax(1) == classes).float().mean())
    return report, shares


def fastest(report: list[dict[str, Any]], precision: str) -> dict[str, Any]:
    """The row of the fastest engine in this precision or a finer one that agrees."""
    allowed = list(GOALS)[: list(GOALS).index(precision) + 1]
    agree = [row for row in report if row["verdict"] == "kept" or row["verdict"].startswith("slower than")]
    return min((row for row in agree if row["precision"] in allowed), key=lambda row: row["seconds"])


def engine(subject: Subject, name: str, precision: Any) -> Callable[[], object]:
    """A contestant: our model as one engine runs it."""
    from vitrail.engines.choose import ENGINES
    from vitrail.engines.engine import one_batch
    from vitrail.engines.trial import CALIBRATING

    model, examples, _ = prepared(subject)
    model.eval().requires_grad_(False)
    chosen = next(one for one in ENGINES if one.name == name and precision in one.precisions)
    forward = chosen.build(model, examples[:CALIBRATING], subject.batch, precision)
    return turn(partial(forward, one_batch(examples, subject.batch)))


def turn(work: Callable[[], object]) -> Callable[[], int]:
    """Passes that take SECONDS, by two that are tried here; it returns how many."""
    began = time.perf_counter()
    work(), work()
    passes = max(1, round(SECONDS * 2 / (time.perf_counter() - began)))

    def several() -> int:
        for _ in range(passes):
            work()
        return passes

    return several


def timm(subject: Subject) -> Callable[[], object]:
    """The peer: eager, fp32, with its own weights, whose values cost the same."""
    import timm as library
    import torch

    model, images = library.create_model(subject.name).eval(), torch.randn(subject.batch, 3, 224, 224)

    @torch.inference_mode()
    def work() -> None:
        model(images)

    return turn(work)


def measure(title: str, subject: Subject, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows beside timm, and those of the engines."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        report, shares = alone.submit(tried, subject).result()
    chosen = {precision: fastest(report, precision) for precision in GOALS}
    works: dict[str, Callable[[], Any]] = {"timm": partial(timm, subject)}
    for row in chosen.values():
        works[f"{row['engine']} {row['precision']}"] = partial(engine, subject, row["engine"], row["precision"])
    found = contest(works, rounds=rounds)
    about = {"model": title, "batch": subject.batch}
    beside = []
    for precision, row in chosen.items():
        ours = found[f"{row['engine']} {row['precision']}"]
        speedup = ratio(found["timm"], ours)
        beside.append(
            {
                **about,
                "allowed": precision,
                "chosen": f"{row['engine']}, {row['precision']}",
                "ours ms": ours.failed or f"{statistics.median(ours.seconds) * 1e3:.1f}",
                "timm fp32 ms": f"{statistics.median(found['timm'].seconds) * 1e3:.1f}",
                "speed-up": f"{speedup.median:.2f}" if speedup else "",
                "least": f"{speedup.least:.2f}" if speedup else "",
                "most": f"{speedup.most:.2f}" if speedup else "",
                "goal": GOALS[precision],
                "difference": f"{row['difference']:.0e}",
                "held out": f"{shares[precision]:.1%}" if shares else "",
                "peak MB": f"{ours.peak / 1e6:.0f}",
            }
        )
    engines = [
        {
            **about,
            "engine": row["engine"],
            "precision": row["precision"],
            "ms": f"{row['seconds'] * 1e3:.1f}" if row["seconds"] else "",
            "speed-up over eager fp32": f"{report[0]['seconds'] / row['seconds']:.2f}" if row["seconds"] else "",
            "difference": f"{row['difference']:.0e}" if row["difference"] is not None else "",
            "classes kept": f"{row['agreement']:.0%}" if subject.run and row["agreement"] is not None else "",
            "verdict": row["verdict"],
        }
        for row in report
    ]
    return beside, engines


def main() -> None:
    """Read the options, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of trained runs, each named as its model")
    parser.add_argument("--data", default="", help="what the runs learned from")
    parser.add_argument("--only", nargs="*", choices=MODELS, help="models")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="ViT-S and ResNet-50, batch 1, random weights")
    parser.add_argument("--keep", action="store_true", help="write results/inference.json and inference_engines.json")
    options = parser.parse_args()
    home = tempfile.TemporaryDirectory()  # choices that were kept before would come with the times of then
    os.environ["VITRAIL_HOME"] = home.name
    names = ["ViT-S/16", "ResNet-50"] if options.quick else options.only or list(MODELS)
    beside: list[dict[str, Any]] = []
    engines: list[dict[str, Any]] = []
    for title in names:
        folder = options.runs / MODELS[title] if options.runs and not options.quick else None
        run = str(folder) if folder and folder.is_dir() else ""
        for batch in [1] if options.quick else options.batches:
            rows, more = measure(title, Subject(MODELS[title], run, options.data, batch), options.rounds)
            beside, engines = beside + rows, engines + more
            print(table(more), table(rows), sep="\n\n", end="\n\n", flush=True)
            if options.keep:
                keep("inference", beside, by=("model", "batch"), note="224 pixels; times of a batch")
                note = "one after the other in one process; the least of many passes"
                keep("inference_engines", engines, by=("model", "batch"), note=note)


if __name__ == "__main__":
    main()
