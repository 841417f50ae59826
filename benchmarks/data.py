"""Images a second of one core: our loader beside timm's and torchvision's, the same augmentation of the same JPEGs.

    python benchmarks/data.py                      # all, about five minutes; VITRAIL_DATA names the shared images
    python benchmarks/data.py --only small large   # some parts of PARTS
    python benchmarks/data.py --quick              # three rounds; --keep: write results/data_PART.json

Every contestant computes on one thread of the same core, loads in its own process (workers=0), and gives batches of 64
as normalised float32 at 224. The photographs are re-encoded at quality 90 at 500 x 375 and at 2000 x 1500 into a
temporary folder. Speed-up: seconds of the peer / seconds of ours, above 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import Measured, contest, keep, table

SIDE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"small": (500, 375, 256), "large": (2000, 1500, 64)}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def prepare(root: Path) -> None:
    """The photographs at both sizes, in two class folders each, and the small ones as an array."""
    import numpy as np
    from PIL import Image

    photographs = []
    with tarfile.open(Path(os.environ["VITRAIL_DATA"]) / "photos.tar") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                photographs.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
    for name, (width, height, count) in SIZES.items():
        for k in range(count):
            folder = root / name / str(k % 2)
            folder.mkdir(parents=True, exist_ok=True)
            image = photographs[k % len(photographs)].resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / f"{k:04d}.jpg", quality=90)
    arrays = [np.asarray(image.resize((256, 256))) for image in photographs]
    np.savez(root / "arrays.npz", x_train=np.stack(arrays), y_train=np.arange(len(arrays)) % 2)


def pinned() -> None:
    """This process on the last core alone, on one thread."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def counted(epoch: Callable[[], Iterable[Any]]) -> Callable[[], int]:
    """One epoch, and how many images it gave."""

    def work() -> int:
        images = 0
        for batch in epoch():
            images += len(batch[0] if isinstance(batch, list | tuple) else batch.images)
            del batch  # as training does before it asks for the next one
        return images

    return work


# ---------------------------------------------------------------------- contestants


def transform_of(policy: bool) -> Any:
    from vitrail.data.augment import train_transform
    from vitrail.recipe import Augment

    several = {"rand_augment": 2, "rand_augment_magnitude": 9, "rand_augment_std": 0.0, "rand_augment_prob": 1.0}
    augment = Augment(crop_scale=(0.08, 1.0), flip=0.5, **(several if policy else {}))
    return train_transform(augment, img_size=SIDE, mean=MEAN, std=STD, interpolation="bicubic")


def loader_of(data: Path, policy: bool = False, kept_in_memory: bool = False, **options: Any) -> Any:
    from vitrail.data.cache import kept
    from vitrail.data.loader import Loader
    from vitrail.data.sources import find_source

    split = find_source(data).splits["train"]
    split = kept(split, SIDE) if kept_in_memory else split
    settings = {"batch_size": BATCH, "seed": 0, "shuffle": True, "workers": 0, "num_classes": 2, **options}
    return Loader(split, transform_of(policy), **settings)


def vitrail(data: Path, policy: bool = False, kept_in_memory: bool = False) -> Callable[[], int]:
    pinned()
    multiprocessing.set_start_method("fork", force=True)  # as where training starts; this process was spawned
    loader, epochs = loader_of(data, policy, kept_in_memory), iter(range(10**6))
    return counted(lambda: loader.epoch(next(epochs)))


def timm(data: Path, policy: bool = False) -> Callable[[], int]:
    pinned()
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(data)),
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=None,
        auto_augment="rand-m9-n2-p1.0" if policy else None,
        interpolation="bicubic",
        num_workers=0,
        persistent_workers=False,
        mean=MEAN,
        std=STD,
    )
    return counted(lambda: loader)


def torchvision_steps(policy: bool, pillow: bool) -> Any:
    import torch
    from torchvision.transforms import v2

    bilinear, bicubic = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, (0.08, 1.0), interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
            *([v2.RandAugment(2, 9, num_magnitude_bins=11, interpolation=bilinear)] if policy else []),
            *([v2.PILToTensor()] if pillow else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def torchvision(data: Path, policy: bool = False, pillow: bool = True) -> Callable[[], int]:
    pinned()
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def decode(path: str) -> Any:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    changes = {} if pillow else {"loader": decode}
    images = ImageFolder(str(data), torchvision_steps(policy, pillow), **changes)
    loader: Any = DataLoader(images, BATCH, shuffle=True)
    return counted(lambda: loader)


def normalise_ours(count: int) -> Callable[[], int]:
    pinned()
    import torch

    from vitrail.data.erasing import together
    from vitrail.data.memory import Reused

    images, finish, memory = (
        torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8),
        transform_of(False),
        Reused(),
    )
    nothing = together([])

    def work() -> int:
        finish.finish(images, nothing, memory.empty((count, 3, SIDE, SIDE)))
        return count

    return work


def normalise_theirs(count: int) -> Callable[[], int]:
    """ToTensor and Normalize of each Pillow image, and the batch of them."""
    pinned()
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]

    def work() -> int:
        torch.stack([steps(image) for image in images])
        return count

    return work


def policy_of(make: Callable[[], Any], root: Path) -> Callable[[], int]:
    pinned()
    from PIL import Image

    operation = make()
    images = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in sorted(root.glob("small/0/*.jpg"))[:64]]

    def work() -> int:
        for image in images:
            operation(image)
        return len(images)

    return work


def our_policy() -> Any:
    from torchvision.transforms import v2

    from vitrail.data.policies import RandAugment

    return RandAugment(2, 9, 0.0, 1.0, v2.InterpolationMode.BILINEAR)


def timms_policy(interpolation: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform("rand-m9-n2-p1.0", {"interpolation": interpolation})


def torchvisions_policy() -> Any:
    from torchvision.transforms import v2

    return v2.RandAugment(2, 9, num_magnitude_bins=11, interpolation=v2.InterpolationMode.BILINEAR)


# ---------------------------------------------------------------------- parts


def against(
    what: str, contestants: dict[str, Callable[[], Callable[[], Any]]], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each peer of "vitrail"."""
    found = contest(contestants, rounds=rounds, warmup=2, environments=dict.fromkeys(contestants, ENVIRONMENT))
    ours = found.pop("vitrail")
    for peer, theirs in found.items():
        yield row(what, ours, peer, theirs)


def row(what: str, ours: Measured, peer: str, theirs: Measured) -> dict[str, Any]:
    if ours.failed or theirs.failed:
        return {"what": what, "ours images/s": ours.failed, "peer": peer, "peer images/s": theirs.failed}
    gains = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return {
        "what": what,
        "ours images/s": round(1 / statistics.median(ours.seconds)),
        "peer": peer,
        "peer images/s": round(1 / statistics.median(theirs.seconds)),
        "speed-up": f"{statistics.median(gains):.2f}",
        "least": f"{min(gains):.2f}",
        "most": f"{max(gains):.2f}",
        "peak MB, ours / peer": f"{ours.peak / 1e6:.0f} / {theirs.peak / 1e6:.0f}",
    }


def loaders(size: str, policy: bool, root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Crop, flip and normalise, with RandAugment or without, at one size of photograph."""
    data = root / size
    yield from against(
        "{} x {}{}".format(*SIZES[size][:2], ", RandAugment(2, 9)" if policy else ""),
        {
            "vitrail": partial(vitrail, data, policy),
            "timm create_loader": partial(timm, data, policy),
            "torchvision v2, Pillow": partial(torchvision, data, policy),
            "torchvision decode_jpeg + v2": partial(torchvision, data, policy, pillow=False),
        },
        rounds,
    )


def memory(root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """What keeping decoded pictures gains after the first epoch, and crops of an array."""
    kept = {"vitrail": partial(vitrail, root / "small", False, True), "not kept": partial(vitrail, root / "small")}
    yield from against("500 x 375, kept in memory", kept, rounds)
    array = {"vitrail": partial(vitrail, root / "arrays.npz"), "from JPEGs": partial(vitrail, root / "small")}
    yield from against("256 x 256 array (.npz), crops", array, rounds)


def alone(root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Normalising and RandAugment by themselves."""
    yield from against(
        "normalising a batch",
        {"vitrail": partial(normalise_ours, BATCH), "ToTensor + Normalize": partial(normalise_theirs, BATCH)},
        rounds,
    )
    yield from against(
        "RandAugment(2, 9) alone",
        {
            "vitrail": partial(policy_of, our_policy, root),
            "timm, bilinear": partial(policy_of, partial(timms_policy, 2), root),
            "timm, bicubic as it loads": partial(policy_of, partial(timms_policy, 3), root),
            "torchvision v2, Pillow": partial(policy_of, torchvisions_policy, root),
        },
        rounds,
    )


def gap(root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Milliseconds that the first batch of an epoch is waited for, half a second after the epoch before it."""
    for ahead in (True, False):
        loader = loader_of(root / "small", workers=1, ahead=ahead)
        first, later = [], []
        for epoch in range(rounds + 1):
            waits = []
            began = time.perf_counter()
            for _ in loader.epoch(epoch):
                waits.append(1e3 * (time.perf_counter() - began))
                time.sleep(0.15)  # an update
                began = time.perf_counter()
            time.sleep(0.5)  # scoring
            first, later = [*first, waits[0]], [*later, *waits[1:]]
        first = first[1:]
        yield {
            "what": f"wait for a batch, one worker, {'reading ahead' if ahead else 'not ahead'}",
            "first of an epoch ms": f"{statistics.median(first):.0f} ({min(first):.0f} to {max(first):.0f})",
            "later ms": f"{statistics.median(later):.0f}",
        }


PARTS = {
    "small": partial(loaders, "small", False),
    "large": partial(loaders, "large", False),
    "small_policy": partial(loaders, "small", True),
    "large_policy": partial(loaders, "large", True),
    "memory": memory,
    "alone": alone,
    "gap": gap,
}


def main() -> None:
    """Read the options, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--data", type=Path, help="a folder for the photographs, made where it is missing")
    parser.add_argument("--keep", action="store_true", help="write results/data_PART.json")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or Path(temporary)
        if not (root / "arrays.npz").exists():
            prepare(root)
        for name in options.only:
            rows = list(PARTS[name](root, rounds))
            print(table(rows), end="\n\n", flush=True)
            if options.keep:
                keep(f"data_{name}", rows, rounds=rounds, batch=BATCH, img_size=SIDE)


if __name__ == "__main__":
    main()
