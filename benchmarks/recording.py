"""What watching attention costs, in one process, in turns, and whether it changes an answer.

    python benchmarks/recording.py                    # ViT-B/16, batch 4, fp32, eager
    python benchmarks/recording.py --rounds 9 --model vit_small_patch16_224

Three ratios, each the median, least and most over rounds of A B A B:
  unwatched      a forward of a model that was once recorded / of one that never was (what recording leaves behind)
  explicit       a forward that records all maps / one that makes the weights explicit and keeps none
  transformers   a forward that records all maps / transformers' ViT of this shape, eager, `output_attentions=True`
Then the largest difference between logits recorded and unrecorded, relative to the largest logit, over one model of
each family at toy size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import keep, table
from torch import Tensor, nn

from vitrail import create_model, record
from vitrail.layers.attention import probing

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_models import FAMILIES, difference, randomise, tiny  # the tests are no package

Pass = Callable[[Tensor], object]
ABOUT = {
    "unwatched": "a model once recorded / one never recorded",
    "explicit": "recording all maps / explicit weights, none kept",
    "transformers": "recording all maps / transformers' output_attentions=True",
}


def recorded(model: nn.Module) -> Pass:
    """A forward that keeps every map."""

    def run(images: Tensor) -> Tensor:
        with record(model) as maps:
            logits = model(images)
        assert maps
        return logits

    return run


def explicit(model: nn.Module) -> Pass:
    """A forward with explicit weights, of which nothing is kept."""

    def run(images: Tensor) -> Tensor:
        with probing(lambda _site, weights: weights):
            return model(images)

    return run


def in_transformers(config: Any) -> Pass:
    """The forward of transformers' ViT of the same shape, which returns its maps."""
    from transformers import ViTConfig, ViTForImageClassification

    shape: Any = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.embed_dim,
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "num_labels": config.num_classes,
        "attn_implementation": "eager",
    }
    model = ViTForImageClassification(ViTConfig(**shape)).eval()

    def run(images: Tensor) -> Tensor:
        found = model(images, output_attentions=True)
        assert len(found.attentions) == config.depth
        return found.logits

    return run


def ratios(ours: Pass, theirs: Pass, images: Tensor, rounds: int) -> list[float]:
    """Seconds of ours over those of theirs, in turns after one round of warm-up; who begins changes with the round."""
    found = []
    for number in range(rounds + 1):
        seconds = {}
        for run in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            run(images)
            seconds[run] = time.perf_counter() - start
        found.append(seconds[ours] / seconds[theirs])
    return found[1:]


def largest_difference() -> tuple[float, str]:
    """Between logits recorded and unrecorded, over every family that attends, and where."""
    worst = 0.0, ""
    for name, row in FAMILIES.items():
        if row.maps:
            model = randomise(tiny(row)).eval()
            images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
            plain = model(images)
            with record(model):
                worst = max(worst, (difference(model(images), plain), name))
    return worst


@torch.no_grad()
def main() -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="five rounds")
    parser.add_argument("--keep", action="store_true", help="write results/recording.json")
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    torch.manual_seed(0)
    fresh, used = (create_model(options.model).eval() for _ in range(2))
    side = fresh.config.img_size
    images = torch.randn(options.batch, fresh.config.in_chans, side, side)
    recorded(used)(images)
    pairs = {
        "unwatched": (used.__call__, fresh.__call__),
        "explicit": (recorded(used), explicit(used)),
        "transformers": (recorded(used), in_transformers(used.config)),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.model}, batch {options.batch}\n")
    rows = []
    for name, (ours, theirs) in pairs.items():
        found = ratios(ours, theirs, images, rounds)
        spread = {"ratio": statistics.median(found), "least": min(found), "most": max(found)}
        rows.append({"comparison": name, "seconds": ABOUT[name]} | {key: f"{one:.3f}" for key, one in spread.items()})
    print(table(rows))
    worst, family = largest_difference()
    said = f"largest relative difference of logits, recorded and unrecorded: {worst:.1e} ({family})"
    print(f"\n{said}")
    if options.keep:
        keep("recording", rows, note=f"{options.model}, batch {options.batch}; {said}")


if __name__ == "__main__":
    main()
