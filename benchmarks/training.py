"""A step of training, ours beside timm's, in processes of their own and in turns, on this machine's CPU.

    python benchmarks/training.py                          # all groups of steps, 5 rounds, about 15 minutes
    python benchmarks/training.py --quick                  # 3 rounds, without compiling
    python benchmarks/training.py --only depth patches     # these groups
    python benchmarks/training.py --only losses            # ViT-S and Swin-T: do ours learn as timm's in fp32 do
    python benchmarks/training.py --only curves --data FILE  # does bf16 end where fp32 does, 3 seeds each
    python benchmarks/training.py --keep                   # writes results/training*.json too

Batch 16 at 224 pixels, train mode, from random weights; a step is forward and backward, with the update by fused AdamW
where the row says so. `ours / peer` is seconds over seconds, round by round: below 1 is faster. The groups are

    depth     stochastic depth 0.3 that computes what it keeps, against masks on the same model: 0.8 is the goal
    patches   half of the patches left out, against all of them
    step      the whole step in bf16 (and compiled), against timm's, eager in fp32 (goal 0.56) and in bf16
    swin      forward and backward, in the same precision and mode on both sides (goal 0.85)
    memory    `keep_freed_memory`, which `vitrail train` turns on, against the allocator as it is; ours has it in all
              other rows but those of patches
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import Measured, contest, keep, ratio, table

VIT, SWIN = "vit_small_patch16_224", "swin_tiny_patch4_window7_224"
BATCH = 16
STEPS, PART = 40, 10
"""Of the losses: how many there are, and how many make one mean."""


def step(
    library: str,
    name: str,
    precision: str = "fp32",
    *,
    compiled: bool = False,
    update: bool = False,
    rate: float = 0.0,
    uniform: bool = False,
    masked: bool = False,
    patch_drop: float = 0.0,
    kept: bool = False,
) -> Callable[[], None]:
    """A contestant's step. `rate` is stochastic depth's largest, or with `uniform` that of every block."""
    import torch

    torch.manual_seed(0)
    if kept:
        from vitrail.training.allocator import keep_freed_memory

        keep_freed_memory()
    model = ours(name, rate, uniform, masked, patch_drop) if library == "vitrail" else theirs(name)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(0, 1000, (BATCH,))
    if compiled:
        model.compile()

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if update:
            optimizer.step()
        optimizer.zero_grad()

    if compiled:
        work()  # compiles while it is prepared
    return work


def ours(name: str, rate: float, uniform: bool, masked: bool, patch_drop: float) -> Any:
    """vitrail's model; `masked`: with the stochastic depth that computes everything and throws some of it away."""
    from vitrail import create_model
    from vitrail.layers import blocks

    changes = {key: value for key, value in {"drop_path_rate": rate, "patch_drop_rate": patch_drop}.items() if value}
    model = create_model(name, **changes).train()
    for module in model.modules():
        if uniform and isinstance(module, blocks.DropPath):
            module.rate = rate
    if masked:
        vars(blocks)["residual"] = lambda x, branch, drop_path: x + drop_path(branch(x))
    return model


def theirs(name: str) -> Any:
    """timm's model of that name."""
    import timm

    return timm.create_model(name).train()


class Row(NamedTuple):
    """One line of the table: two contestants, and what they are called."""

    what: str
    ours: str
    ours_step: Callable[[], Any]
    peer: str
    peer_step: Callable[[], Any]
    compiled: bool = False


def rows() -> dict[str, list[Row]]:
    """The lines by group."""
    found: dict[str, list[Row]] = {"depth": [], "patches": [], "step": [], "swin": [], "memory": []}
    for precision in ("fp32", "bf16"):
        for rule, uniform in (("0.3 in every block", True), ("0 to 0.3", False)):
            one = partial(step, "vitrail", VIT, precision, rate=0.3, uniform=uniform, kept=True)
            what = f"ViT-S, {precision}, stochastic depth {rule}"
            found["depth"].append(Row(what, "sub-batch", one, "masking", partial(one, masked=True)))
        one = partial(step, "vitrail", VIT, precision)
        half = partial(one, patch_drop=0.5)
        found["patches"].append(Row(f"ViT-S, {precision}, patch dropout 0.5", "half", half, "all patches", one))
    for name, title in ((VIT, "ViT-S"), (SWIN, "Swin-T")):
        whole, timm = (partial(step, library, name, update=True) for library in ("vitrail", "timm"))
        trained = partial(whole, "bf16", kept=True)
        peers = {
            "timm, fp32": partial(timm, "fp32"),
            "timm, bf16": partial(timm, "bf16"),
        }
        found["step"] += [Row(f"{title}, with update", "bf16", trained, *peer) for peer in peers.items()]
        squeezed, peer = partial(trained, compiled=True), partial(timm, "bf16", compiled=True)
        found["step"] += [
            Row(f"{title}, with update", "bf16, compiled", squeezed, "timm, fp32", peers["timm, fp32"], True),
            Row(f"{title}, with update", "bf16, compiled", squeezed, "timm, bf16, compiled", peer, True),
        ]
        for precision in ("fp32", "bf16"):
            plain = partial(whole, precision)
            kept = partial(plain, kept=True)
            found["memory"].append(Row(f"{title}, {precision}, with update", "kept", kept, "as it is", plain))
    for precision in ("fp32", "bf16"):
        for compiled in (False, True):
            mine = partial(step, "vitrail", SWIN, precision, compiled=compiled, kept=True)
            other = partial(step, "timm", SWIN, precision, compiled=compiled)
            mode = "compiled" if compiled else "eager"
            found["swin"].append(Row(f"Swin-T, {precision}, {mode}", "vitrail", mine, "timm", other, compiled))
    return found


def measure(row: Row, rounds: int) -> dict[str, str]:
    """Both contestants of a line, in turns, as the table shows them."""
    measured = contest({"ours": row.ours_step, "peer": row.peer_step}, rounds=rounds)
    mine, other = measured["ours"], measured["peer"]
    found = ratio(mine, other)

    def milliseconds(one: Measured) -> str:
        return one.failed or f"{statistics.median(one.seconds) * 1e3:.0f}"

    return {
        "what": row.what,
        "ours": row.ours,
        "ours ms": milliseconds(mine),
        "peer": row.peer,
        "peer ms": milliseconds(other),
        "ours / peer": f"{found.median:.2f}" if found else "",
        "least": f"{found.least:.2f}" if found else "",
        "most": f"{found.most:.2f}" if found else "",
        "peak MB": f"{mine.peak / 1e6:.0f}",
        "peer's": f"{other.peak / 1e6:.0f}",
    }


def losses() -> Iterator[dict[str, str]]:
    """Mean losses of ViT-S and Swin-T along the same batches of photographs, from the same weights as timm's."""
    import torch
    from end_to_end import SETS, photographs

    from vitrail.data.augment import train_transform
    from vitrail.data.loader import Loader
    from vitrail.data.sources import open_source
    from vitrail.recipe import Augment

    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        split = open_source(folder).splits["train"]
        colours: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        transform = train_transform(Augment(), img_size=224, interpolation="bicubic", **colours)
        options: dict[str, Any] = {"seed": 0, "shuffle": True, "workers": 0, "num_classes": len(SETS)}
        loader = Loader(split, transform, batch_size=BATCH, drop_last=True, **options)
        batches = [(batch.images.clone(), batch.labels) for batch in islice(loader.epoch(0), STEPS)]
    for name, title in ((VIT, "ViT-S"), (SWIN, "Swin-T")):
        for who, precision, compiled in (
            ("timm", "fp32", False),
            ("vitrail", "fp32", False),
            ("vitrail", "bf16", False),
            ("vitrail", "bf16", True),
        ):
            found: list[float] = []
            model = learner(who, name, len(SETS))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            if compiled:
                model.compile()
            for images, labels in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(float(loss))
            row = {"model": title, "who": f"{who}, {precision}{', compiled' if compiled else ''}"}
            for first in range(0, STEPS, PART):
                row[f"steps {first + 1} to {first + PART}"] = f"{statistics.mean(found[first : first + PART]):.4f}"
            yield row


def learner(library: str, name: str, classes: int) -> Any:
    """The model in that library's hands, of both with timm's weights of seed 0, without stochastic depth."""
    import timm
    import torch

    from vitrail import create_model

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=classes, drop_path_rate=0.0).train()
    if library == "timm":
        return theirs
    model = create_model(name, num_classes=classes, drop_path_rate=0.0).train()
    model.load_state_dict(theirs.state_dict())
    return model


def curves(data: str, epochs: int, seeds: int) -> list[dict[str, str]]:
    """The last training loss and held-out accuracy of a small ViT on CIFAR-10's subset, in each precision."""
    import json

    from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule
    from vitrail.training.loop import fit

    recipe = Recipe(
        model="deit_nano_patch8_32",
        data=Data(source=data, workers=0, limit=2000, batch_size=100),
        augment=Augment(crop="padded"),
        optim=Optim(lr=1e-3),
        schedule=Schedule(epochs=epochs, warmup_epochs=1.0),
    )
    found = []
    for title, precision, compiled in (
        ("fp32", "fp32", False),
        ("bf16", "bf16", False),
        ("bf16, compiled", "bf16", True),
    ):
        ends: list[tuple[float, float]] = []
        with tempfile.TemporaryDirectory() as place:
            for seed in range(seeds):
                out = fit(
                    replace(recipe, precision=precision, compile=bool(compiled), seed=seed), Path(place) / str(seed)
                )
                last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
                ends.append((last["train_loss"], last[f"val_{last['metric']}"]))
        losses, accuracies = zip(*ends, strict=True)
        said = {"training loss, by seed": " ".join(f"{loss:.3f}" for loss in losses)}
        said |= {"held-out accuracy, by seed": " ".join(f"{share:.3f}" for share in accuracies)}
        found.append({"precision": title, **said})
    return found


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing compiled")
    parser.add_argument("--only", nargs="*", choices=[*rows(), "losses", "curves"], help="groups")
    parser.add_argument("--data", default="cifar10_subset.npz", help="images of the curves")
    parser.add_argument("--keep", action="store_true", help="write results/training.json, or that of losses or curves")
    options = parser.parse_args()
    if options.only == ["curves"]:
        learned = curves(options.data, epochs=10, seeds=3)
        print(table(learned))
        if options.keep:
            keep("training_curves", learned, note="deit_nano_patch8_32, 2,000 images, 10 epochs, 3 seeds")
        return
    if options.only == ["losses"]:
        seen = []
        for line in losses():
            seen.append(line)
            print(*line.values(), sep=" | ", flush=True)
        if options.keep:
            keep("training_losses", seen, note=f"AdamW at 1e-4, the same {BATCH} photographs a step for all")
        return
    wanted = [row for group, lines in rows().items() if group in (options.only or rows()) for row in lines]
    lines = []
    for row in wanted:
        if options.quick and row.compiled:
            continue
        lines.append(measure(row, 3 if options.quick else options.rounds))
        print(*lines[-1].values(), sep=" | ", flush=True)
        if options.keep:
            keep("training", lines, by=("what", "ours", "peer"), note=f"batch {BATCH}, 224 pixels; bf16 is autocast")
    print("\n" + table(lines))


if __name__ == "__main__":
    main()
