"""What only a GPU can show, in one run of some minutes: ours beside timm, same precision, same mode.

    python benchmarks/gpu.py                          # writes results/gpu_*.json; VITRAIL_DATA for the parts that read
    python benchmarks/gpu.py --only training --quick

  training    ViT-B/16, ViT-L/16, Swin-T, Swin-B at 224: forward, backward and fused AdamW in bf16, compiled; ViT-B also
              with stochastic depth 0.4 in every block. Ratios to timm, share of the measured GEMM rate.
  inference   ViT-B/16, bf16 weights, compiled.
  float8      ViT-L/16 with torchao's float8 linear layers beside bf16: seconds, and the losses of the same 100 steps.
  loader      a training step on real JPEGs through our loader / on a batch that lies there: 1.05 is 95 % busy.
  scratch     `vitrail train` of a small ViT on the CIFAR-10 subset: seconds, best accuracy, seconds until it.

Every contestant has a process of its own (side_by_side.py). What a machine lacks (timm, torchao, memory) fails alone,
and its row says so.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from side_by_side import contest, keep, ratio, table
from torch import Tensor, nn
from torch.nn import functional as F

TRAINED = {
    "vit_base_patch16_224": 256,
    "vit_large_patch16_224": 128,
    "swin_tiny_patch4_window7_224": 256,
    "swin_base_patch4_window7_224": 128,
}
DEPTH_RATE = 0.4
CUDA = torch.device("cuda")


def made(library: str, name: str, rate: float = 0.0) -> nn.Module:
    """The model in that library's hands, with stochastic depth of `rate` in every block, on the GPU."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(name)
        from timm.layers import DropPath as TheirDropPath
    else:
        from vitrail import create_model

        model = create_model(name)
        TheirDropPath = None
    if rate:
        for block in model.blocks:  # type: ignore[union-attr]
            for place in ("drop_path1", "drop_path2"):
                if TheirDropPath is not None:
                    setattr(block, place, TheirDropPath(rate))
                else:
                    getattr(block, place).rate = rate
    return model.to(CUDA)


def step(model: nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Forward, backward, update under bf16 autocast; the loss."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def training(library: str, name: str, batch: int, rate: float = 0.0) -> Callable[[], int]:
    """Ten steps a turn."""
    torch.set_float32_matmul_precision("high")
    model = made(library, name, rate).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.compile()
    images = torch.randn(batch, 3, 224, 224, device=CUDA)
    labels = torch.randint(1000, (batch,), device=CUDA)

    def work() -> int:
        for _ in range(10):
            step(model, optimizer, images, labels)
        torch.cuda.synchronize()
        return 10 * batch

    work()
    return work


@torch.inference_mode()
def inference(library: str, name: str, batch: int) -> Callable[[], int]:
    """Twenty passes a turn, bf16 weights, compiled."""
    model = made(library, name).eval().to(torch.bfloat16)
    if library == "vitrail":
        from vitrail import optimize

        answer: Any = optimize(model.float(), torch.randn(batch, 3, 224, 224, device=CUDA), precision="bf16")
        images = torch.randn(batch, 3, 224, 224, device=CUDA)
    else:
        answer = torch.compile(model, mode="max-autotune")
        images = torch.randn(batch, 3, 224, 224, device=CUDA, dtype=torch.bfloat16)

    @torch.inference_mode()
    def work() -> int:
        for _ in range(20):
            answer(images)
        torch.cuda.synchronize()
        return 20 * batch

    work()
    return work


def gemm_rate() -> float:
    """Floating-point operations a second of a large bf16 product."""
    one, other = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        one @ other
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def compare_training(rounds: int) -> None:
    """Ratios to timm, and shares of the GEMM rate."""
    from vitrail import create_model
    from vitrail.comparison.cost import flops

    rate, rows = gemm_rate(), []
    cases = [(name, batch, 0.0) for name, batch in TRAINED.items()] + [("vit_base_patch16_224", 256, DEPTH_RATE)]
    for name, batch, depth in cases:
        found = contest(
            {who: partial(training, who, name, batch, depth) for who in ("vitrail", "timm")}, rounds=rounds, warmup=1
        )
        ours = found["vitrail"]
        row = {"model": name, "stochastic depth": depth, "batch": batch, "failed": ours.failed or found["timm"].failed}
        if ours.seconds:
            seconds = sorted(ours.seconds)[len(ours.seconds) // 2]
            operations = 6 * flops(create_model(name), 224) * (1 - depth)
            row |= {"images/s": round(1 / seconds), "share of GEMM rate": round(operations / seconds / rate, 3)}
        speedup = ratio(found["timm"], ours)
        rows.append(row | {"timm / ours": str(speedup)})
    print(table(rows), flush=True)
    keep("gpu_training", rows, gemm_tflops=rate / 1e12)


def compare_inference(rounds: int) -> None:
    """ViT-B/16 beside timm's."""
    rows = []
    for batch in (1, 256):
        found = contest(
            {who: partial(inference, who, "vit_base_patch16_224", batch) for who in ("vitrail", "timm")}, rounds=rounds
        )
        failed = found["vitrail"].failed or found["timm"].failed
        rows.append({"batch": batch, "timm / ours": str(ratio(found["timm"], found["vitrail"])), "failed": failed})
    print(table(rows), flush=True)
    keep("gpu_inference", rows)


def losses(float8: bool, steps: int) -> tuple[list[float], float]:
    """Of the same steps, and seconds a step once compiled."""
    model = made("vitrail", "vit_large_patch16_224").train()
    if float8:
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(model, module_filter_fn=lambda _module, name: "head" not in name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.compile()
    generator = torch.Generator(CUDA).manual_seed(0)
    images = torch.randn(512, 3, 224, 224, device=CUDA, generator=generator)
    labels = torch.randint(1000, (512,), device=CUDA, generator=generator)
    found, start = [], 0.0
    for k in range(steps):
        if k == steps // 2:
            torch.cuda.synchronize()
            start = time.perf_counter()
        part = slice(128 * (k % 4), 128 * (k % 4 + 1))
        found.append(step(model, optimizer, images[part], labels[part]))
    torch.cuda.synchronize()
    return torch.stack(found).tolist(), (time.perf_counter() - start) / (steps - steps // 2)


def compare_float8(steps: int) -> None:
    """Seconds and losses with and without."""
    plain, slow = losses(False, steps)
    try:
        eighth, fast = losses(True, steps)
    except Exception as error:  # torchao is missing, or knows no such GPU: the row says so
        rows = [{"float8": f"{type(error).__name__}: {error}"}]
    else:
        rows = [{"bf16 / float8, seconds": f"{slow / fast:.2f}", "last losses": f"{plain[-1]:.3f}, {eighth[-1]:.3f}"}]
        keep("gpu_float8", rows, bf16=plain, float8=eighth)
    print(table(rows), flush=True)


def batches(folder: Path, workers: int) -> Iterator[Tensor]:
    """Augmented batches of a folder's JPEGs, as a run gets them, for ever."""
    from vitrail.data.augment import train_transform
    from vitrail.data.loader import Loader
    from vitrail.data.sources import open_source
    from vitrail.recipe import Augment

    source = open_source(folder)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = train_transform(Augment(), img_size=224, mean=mean, std=std, interpolation="bicubic")
    loader = Loader(
        source.splits["train"], transform, batch_size=256, seed=0, shuffle=True, workers=workers, num_classes=2
    )
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield batch.images.to(CUDA, non_blocking=True)
        epoch += 1


def compare_loader(steps: int) -> None:
    """A step that waits for real JPEGs beside one whose batch lies there."""
    data = Path(os.environ["VITRAIL_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(data / "photos.tar") as archive:
            names = [name for name in archive.getnames() if name.endswith(".jpg")]
            for k in range(4000):
                file = archive.extractfile(names[k % len(names)])
                assert file is not None
                target = Path(scratch) / f"class{k % 2}" / f"{k}.jpg"
                target.parent.mkdir(exist_ok=True)
                image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((500, 375))
                image.save(target, quality=90)
        model = made("vitrail", "vit_base_patch16_224").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        model.compile()
        fed = batches(Path(scratch), workers=len(os.sched_getaffinity(0)))
        lying = next(fed)
        labels = torch.zeros(len(lying), dtype=torch.long, device=CUDA)

        def seconds(images: Callable[[], Tensor]) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                batch = images()
                step(model, optimizer, batch, labels[: len(batch)])
            torch.cuda.synchronize()
            return (time.perf_counter() - start) / steps

        seconds(lambda: lying)
        for _ in range(3):  # a last batch that is smaller compiles anew
            step(model, optimizer, batch := next(fed), labels[: len(batch)])
        share = seconds(lambda: lying) / seconds(lambda: next(fed))
    rows = [{"busy": f"{share:.0%}", "cores": len(os.sched_getaffinity(0))}]
    print(table(rows), flush=True)
    keep("gpu_loader", rows)


def scratch_run() -> None:
    """Seconds to the best accuracy of a small ViT on the CIFAR-10 subset."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        source = Path(os.environ["VITRAIL_DATA"]) / "cifar10_subset.npz"
        command = [sys.executable, "-m", "vitrail", "train", str(source), "--recipe", "scratch/small_images"]
        command += ["--out", str(out), "--precision", "bf16", "--schedule.epochs", "100"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        best = max(log, key=lambda row: row["val_top1"])
    share = best["epoch"] / len(log)
    rows = [{"seconds": round(seconds), "best top-1": best["val_top1"], "seconds to it": round(seconds * share)}]
    print(table(rows), flush=True)
    keep("gpu_scratch", rows)


def main() -> None:
    """Read the options, do the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; this script is for a machine that has one")
    rounds, steps = (2, 10) if options.quick else (5, 100)
    parts: dict[str, Callable[[], None]] = {
        "training": partial(compare_training, rounds),
        "inference": partial(compare_inference, rounds),
        "float8": partial(compare_float8, steps),
        "loader": partial(compare_loader, min(steps, 40)),
        "scratch": scratch_run,
    }
    for name, part in parts.items():
        if not options.only or name in options.only:
            part()


if __name__ == "__main__":
    main()
