"""Millions of images: listing their folders, and what an index of ten million costs before the first batch.

    python benchmarks/index.py               # 200,000 files, 10 million images, 3 rounds: about 4 minutes
    python benchmarks/index.py --quick       # 20,000 files, 1 million images, 1 round
    python benchmarks/index.py --keep        # writes results/index.json too

Listing is of real files, a few bytes each, in a temporary folder of 1000 classes. The ten million are an index alone:
paths like ImageNet's, 1000 classes, no files. Beside ours stands what torchvision and timm keep, a list of (path,
class), with torch's own way to hold out, to draw an epoch (RandomSampler and BatchSampler) and to resume it (passing
over the batches that were seen). Every contestant runs in processes of its own, in turns. Peaks are what a
process took at most beyond its libraries. A loader process is a fork that looks at a million images, drawn at
random: what it no longer shares with its parent is its own memory. Ratios are ours over the peer's: below 1 is faster
or smaller.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from side_by_side import contest, keep, ratio, table

from vitrail.comparison.memory import high_water

CLASSES, BATCH, LOOKED_AT = 1000, 1024, 1_000_000

# ---------------------------------------------------------------------- listing


def ours_lists(root: Path) -> Callable[[], Any]:
    from vitrail.data.folders import open_folder

    return lambda: len(open_folder(root).splits["train"]) and None


def torchvision_lists(root: Path) -> Callable[[], Any]:
    from torchvision.datasets import ImageFolder

    return lambda: len(ImageFolder(root)) and None


def timm_lists(root: Path) -> Callable[[], Any]:
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    return lambda: len(ReaderImageFolder(str(root))) and None


def fill(root: Path, files: int) -> None:
    """Files of three bytes in the folders of the classes."""
    for k in range(CLASSES):
        folder = root / f"n{k:08d}"
        folder.mkdir(parents=True)
        for j in range(files // CLASSES):
            with open(folder / f"n{k:08d}_{j}.JPEG", "wb") as file:
                file.write(b"\xff\xd8\xff")


def listing(files: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each peer."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        fill(root, files)
        makers = {"vitrail": ours_lists, "torchvision ImageFolder": torchvision_lists, "timm reader": timm_lists}
        found = contest({name: partial(make, root) for name, make in makers.items()}, rounds=rounds, warmup=1)
    ours = found.pop("vitrail")
    rows = []
    for peer, theirs in found.items():
        times = ratio(ours, theirs)
        assert times is not None, theirs.failed
        rows.append(
            row(f"list {files:,} files", statistics.median(ours.seconds), peer, statistics.median(theirs.seconds), "s")
            | {"least": f"{times.least:.2f}", "most": f"{times.most:.2f}"}
        )
    return rows


# ---------------------------------------------------------------------- an index without files

Steps = dict[str, float]
"""Seconds, or bytes where the name says so."""


def paths(images: int) -> Iterator[str]:
    """So many, class by class."""
    for k in range(CLASSES):
        for j in range(images // CLASSES):
            yield f"train/n{k:08d}/n{k:08d}_{j}.JPEG"


class Clock:
    """The seconds of each step since the one before."""

    def __init__(self) -> None:
        self.steps: Steps = {}
        self.last = time.perf_counter()

    def say(self, step: str) -> None:
        """The step that ends here."""
        now = time.perf_counter()
        self.steps[step], self.last = now - self.last, now


def ours_indexed(images: int) -> Steps:
    import numpy as np

    from vitrail.data.folders import FileSplit
    from vitrail.data.order import Order, Plan
    from vitrail.data.sources import Source, class_counts, hold_out

    before, clock = high_water(), Clock()
    whole = FileSplit(Path(), paths(images), np.repeat(np.arange(CLASSES), images // CLASSES))
    clock.say("open")
    source = Source("synthetic", [f"n{k:08d}" for k in range(CLASSES)], {"train": whole})
    class_counts(source, whole)
    clock.say("count the images of each class")
    train = hold_out(source, seed=0, val_fraction=0.01).splits["train"]
    clock.say("hold out 1 %, by class")
    order = Order(train.labels, seed=0, shuffle=True, repeats=1, balanced=False)
    plan = Plan(order, BATCH, drop_last=True, rank=0, world=1)
    first = next(iter(plan))
    clock.say("first batch of an epoch")
    plan.start = int(0.9 * len(plan))
    resumed = next(iter(plan))
    clock.say("first batch resumed at 90 %")
    assert len(first) == len(resumed) == BATCH
    return clock.steps | memory(lambda i: (train.name(i), train.labels[i]), len(train), before)


def theirs_indexed(images: int) -> Steps:
    import torch
    from torch.utils.data import BatchSampler, RandomSampler, random_split

    before, clock = high_water(), Clock()
    each = images // CLASSES
    samples = [(path, k // each) for k, path in enumerate(paths(images))]
    clock.say("open")
    counts: dict[int, int] = {}
    for _, label in samples:
        counts[label] = counts.get(label, 0) + 1
    clock.say("count the images of each class")
    train = random_split(samples, [0.99, 0.01], torch.Generator().manual_seed(0))[0]  # type: ignore[arg-type]
    clock.say("hold out 1 %, by class")
    sampler = BatchSampler(RandomSampler(train, generator=torch.Generator().manual_seed(0)), BATCH, drop_last=True)
    first = next(iter(sampler))
    clock.say("first batch of an epoch")
    resumed = next(islice(sampler, int(0.9 * len(sampler)), None))
    clock.say("first batch resumed at 90 %")
    assert len(first) == len(resumed) == BATCH
    return clock.steps | memory(lambda i: train[i], len(train), before)


def memory(look: Callable[[int], Any], images: int, before: int) -> Steps:
    """What this process took at most beyond `before`, and what a fork of it has for itself once it has looked at some
    images."""
    import numpy as np

    chosen = np.random.default_rng(0).integers(0, images, min(LOOKED_AT, images))
    peak = high_water() - before
    here, there = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        alone = private()
        for i in chosen:
            look(int(i))
        there.send(private() - alone)
        os._exit(0)
    own = here.recv()
    os.waitpid(child, 0)
    return {"peak memory, bytes": peak, "own memory of a loader process, bytes": own}


def private() -> int:
    """Bytes that this process shares with none."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


def index(images: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each step and each memory."""
    found: dict[str, list[Steps]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, work in (("ours", ours_indexed), ("theirs", theirs_indexed)):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                found[side].append(alone.submit(work, images).result())
    rows = []
    for step in found["ours"][0]:
        ours, theirs = ([one[step] for one in found[side]] for side in ("ours", "theirs"))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        scale, unit = (1e6, "MB") if step.endswith("bytes") else (1, "s")
        what = f"{images:,} images: {step.removesuffix(', bytes')}"
        rows.append(
            row(what, statistics.median(ours) / scale, "lists", statistics.median(theirs) / scale, unit)
            | {"least": f"{min(ratios):.2f}", "most": f"{max(ratios):.2f}"}
        )
    return rows


def row(what: str, ours: float, peer: str, theirs: float, unit: str) -> dict[str, Any]:
    """The columns that all rows have."""
    shown = "{:.0f} MB" if unit == "MB" else "{:.2f} s"
    return {
        "what": what,
        "ours": shown.format(ours),
        "peer": peer,
        "theirs": shown.format(theirs),
        "ours / peer": f"{ours / theirs:.2f}",
    }


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, one round")
    parser.add_argument("--keep", action="store_true", help="write results/index.json")
    options = parser.parse_args()
    share, rounds = (10, 1) if options.quick else (1, options.rounds)
    rows = listing(200_000 // share, rounds + 2) + index(10_000_000 // share, rounds)
    print(table(rows))
    if options.keep:
        keep("index", rows, rounds=rounds)


if __name__ == "__main__":
    main()
