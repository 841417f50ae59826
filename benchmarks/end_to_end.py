"""A folder of 1,000 photographs to a trained model: `vitrail train` beside timm's train.py and transformers' Trainer.

    python benchmarks/end_to_end.py --timm-train pytorch-image-models/train.py            # VITRAIL_DATA must be set
    python benchmarks/end_to_end.py --timm-train FILE --half --keep    # the peers in bf16 too; writes results
    python benchmarks/end_to_end.py --quick                            # one seed, two epochs

The same ViT-Ti/16 from random weights, the same 1,000 + 250 JPEGs in four classes, image size, epochs, batch, crop and
flip, AdamW and cosine; each scores the held-out images and saves after every epoch. Commands as a user types them, from
a cold process to its end, in turns over the seeds. timm's train.py is no part of its package: give the path of a copy.
The pictures: left and right four fifths of the photographs of four sets (ImageNet, COCO, blood cells, street scenes;
which set is the class), both in the same split.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from side_by_side import keep, table

SETS = {
    "blood": ("bccd/images.tar",),
    "objects": ("photos.tar",),
    "scenes": ("coco_captions/train.tar", "coco_captions/val.tar"),
    "streets": ("camvid/camvid.tar",),
}
TRAIN, VAL = 1000, 250
MEAN, STD = ("0.485", "0.456", "0.406"), ("0.229", "0.224", "0.225")


class Ended(NamedTuple):
    """One run."""

    seconds: float
    accuracy: float


class Setting(NamedTuple):
    """What is the same for all."""

    folder: Path
    epochs: int
    side: int
    batch: int
    lr: float


def photographs(folder: Path) -> None:
    """Write train/CLASS/*.jpg and val/CLASS/*.jpg, the same for every call."""
    data = Path(os.environ["VITRAIL_DATA"])
    found = []
    for name, tars in SETS.items():
        for tar in tars:
            with tarfile.open(data / tar) as archive:
                for member in archive.getmembers():
                    stem, _, ending = member.name.rpartition(".")
                    if ending in ("jpg", "png") and not stem.endswith(".mask"):
                        file = archive.extractfile(member)
                        assert file is not None
                        found.append((name, stem.replace("/", "_"), file.read()))
    order = np.random.default_rng(0).permutation(len(found))
    written = 0
    for k in order:
        name, stem, encoded = found[k]
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        width, height = image.size
        for side, left in (("left", 0), ("right", width - width * 4 // 5)):
            split = "train" if written < TRAIN else "val"
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            image.crop((left, 0, left + width * 4 // 5, height)).save(target / f"{stem}_{side}.jpg", quality=90)
            written += 1
        if written >= TRAIN + VAL:
            return


def run(command: list[str], accuracy: Callable[[str], float]) -> Ended:
    """One command from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Ended(seconds, accuracy(done.stdout))


def vitrail(setting: Setting, seed: int, out: Path, *more: str) -> Ended:
    """`vitrail train FOLDER`."""
    command = [sys.executable, "-m", "vitrail", "train", str(setting.folder), "--model", "vit_tiny_patch16_224"]
    command += ["--out", str(out), "--seed", str(seed), "--data.img-size", str(setting.side)]
    command += ["--data.batch-size", str(setting.batch), "--schedule.epochs", str(setting.epochs)]
    command += ["--schedule.warmup-epochs", "1", "--optim.lr", str(setting.lr), "--optim.lr-batch", "None"]
    command += ["--optim.clip-grad", "None", "--augment.crop-scale", "0.08", "1.0", "--augment.rand-augment", "0"]
    command += ["--augment.erasing", "0", "--label-smoothing", "0", "--drop-path", "0", *more]
    return run(command, lambda _: json.loads((out / "log.jsonl").read_text().splitlines()[-1])["val_top1"])


def timm(setting: Setting, seed: int, out: Path, script: Path, *more: str) -> Ended:
    """timm's train.py."""
    command = [sys.executable, str(script), str(setting.folder), "--model", "vit_tiny_patch16_224"]
    command += ["--num-classes", str(len(SETS)), "--img-size", str(setting.side), "--batch-size", str(setting.batch)]
    command += ["--model-kwargs", f"img_size={setting.side}"]
    command += ["--epochs", str(setting.epochs), "--opt", "adamw", "--weight-decay", "0.05", "--lr", str(setting.lr)]
    command += ["--warmup-epochs", "1", "--warmup-prefix", "--cooldown-epochs", "0", "--sched-on-updates"]
    command += ["--min-lr", "0", "--warmup-lr", "0", "--smoothing", "0", "--color-jitter", "0", "--crop-pct", "0.875"]
    command += ["--mean", *MEAN, "--std", *STD, "--interpolation", "bicubic", "--train-interpolation", "bicubic"]
    command += ["--workers", "2", "--device", "cuda" if _gpu() else "cpu", "--seed", str(seed), "--val-split", "val"]
    command += ["--output", str(out.parent), "--experiment", out.name, *more]

    def accuracy(_said: str) -> float:
        with open(out / "summary.csv", newline="") as file:
            return float(list(csv.DictReader(file))[-1]["eval_top1"]) / 100

    return run(command, accuracy)


def transformers(setting: Setting, seed: int, out: Path, *more: str) -> Ended:
    """transformers' Trainer."""
    script = Path(__file__).with_name("transformers_train.py")
    command = [sys.executable, str(script), str(setting.folder), str(out), "--epochs", str(setting.epochs)]
    command += ["--img-size", str(setting.side), "--batch-size", str(setting.batch), "--lr", str(setting.lr)]
    command += ["--seed", str(seed), *more]
    return run(command, lambda said: float(json.loads(said.splitlines()[-1])["accuracy"]))


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _rows(ended: dict[str, list[Ended]]) -> list[dict[str, str]]:
    rows = []
    for name, runs in ended.items():
        seconds = [one.seconds for one in runs]
        spread = statistics.stdev([one.accuracy for one in runs]) if len(runs) > 1 else 0.0
        row = {"who": name, "seconds": f"{statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f})"}
        row["accuracy, mean ± deviation of seeds"] = f"{statistics.mean(o.accuracy for o in runs):.3f} ± {spread:.3f}"
        for peer in ended:
            if not peer.startswith("vitrail"):
                shares = [a.seconds / b.seconds for a, b in zip(runs, ended[peer], strict=True)]
                row[f"seconds / {peer}"] = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        rows.append(row)
    return rows


def main() -> None:
    """Read the options, run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-train", type=Path, help="timm's train.py")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--half", action="store_true", help="the peers in bf16 too")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--keep", action="store_true", help="write results/end_to_end.json")
    options = parser.parse_args()
    seeds, epochs = (1, 2) if options.quick else (options.seeds, options.epochs)
    ended: dict[str, list[Ended]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photographs"
        photographs(folder)
        setting = Setting(folder, epochs, options.img_size, options.batch_size, options.lr)
        for seed in range(seeds):
            out = Path(scratch) / f"out{seed}"
            out.mkdir()
            runs: dict[str, Callable[[], Ended]] = {
                "vitrail bf16": partial(vitrail, setting, seed, out / "v16", "--precision", "bf16"),
                "vitrail fp32": partial(vitrail, setting, seed, out / "v32"),
                "transformers fp32": partial(transformers, setting, seed, out / "h32"),
            }
            if options.half:
                runs["transformers bf16"] = partial(transformers, setting, seed, out / "h16", "--bf16")
            if script := options.timm_train:
                runs["timm fp32"] = partial(timm, setting, seed, out / "t32", script)
            if options.half and script:
                runs["timm bf16"] = partial(
                    timm, setting, seed, out / "t16", script, "--amp", "--amp-dtype", "bfloat16"
                )
            for name, start in runs.items():
                ended.setdefault(name, []).append(start())
                print(seed, name, ended[name][-1], file=sys.stderr, flush=True)
    rows = _rows(ended)
    print(table(rows))
    note = f"ViT-Ti/16 at {options.img_size}, {epochs} epochs, batch {options.batch_size}, {seeds} seeds"
    if options.keep:
        keep("end_to_end", rows, note=note)


if __name__ == "__main__":
    main()
