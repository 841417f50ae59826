"""Forward and backward of every family beside its reference, in one process, in turns: ours, theirs, ours, theirs.

    python benchmarks/training_step.py                       # every family, its smallest variant, batch 8, native size
    python benchmarks/training_step.py --only swin tnt --rounds 9

Prints one line a family: milliseconds of both (median) and the ratio of each pair, ours / theirs: median, least, most.
Both run in train mode, eagerly, in fp32, with stochastic parts off, from the same weights. Families whose reference is
no installable module have no line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail import create_model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from references import Called, family, reference  # the tests are no package
from rows import ROWS, Row


def step(model: nn.Module, images: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    model(images).square().mean().backward()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def measure(row: Row, batch: int, rounds: int) -> tuple[list[float], list[float]] | None:
    """Seconds of ours and of the reference, `rounds` each, in turns after one round of warm-up."""
    torch.manual_seed(0)
    model = create_model(row.name).train()
    side = model.config.img_size
    other = reference(model, row.name, (side, side))
    if not isinstance(other, Called):
        return None
    images = torch.randn(batch, model.config.in_chans, side, side)
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(step(model, images))
        theirs.append(step(other.module, images))
    return ours[1:], theirs[1:]


def main() -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="families (files of vitrail/models)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    smallest: dict[str, Row] = {}
    for row in sorted((row for row in ROWS if row.parity != "toy"), key=lambda row: row.params):
        smallest.setdefault(family(row.name), row)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}, fp32, eager\n")
    print("| family | model | reference | ours ms | theirs ms | ratio | least | most |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for name, row in smallest.items():
        if options.only and name not in options.only:
            continue
        found = measure(row, options.batch, options.rounds)
        if found is None:
            continue
        ours, theirs = found
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        times = [f"{statistics.median(seconds) * 1e3:.0f}" for seconds in found]
        spread = [f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
        print("| " + " | ".join([name, row.name, row.reference, *times, *spread]) + " |", flush=True)


if __name__ == "__main__":
    main()
