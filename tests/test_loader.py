"""Batches are pure functions of (seed, epoch, step): for any workers, from any start, whatever else draws numbers."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.arrays import ArraySplit
from vitrail.data.augment import eval_transform, train_transform
from vitrail.data.folders import FileSplit
from vitrail.data.loader import Batch, Loader, WorkerDied, hash_seed
from vitrail.data.mix import mix
from vitrail.data.sources import Split, open_source
from vitrail.errors import UserError
from vitrail.recipe import Augment

RANDOM = train_transform(
    Augment(crop="padded", crop_padding=1, rotate=15, rand_augment=1, erasing=0.5),
    img_size=8, mean=[0.5], std=[0.5], interpolation="bilinear",
)  # fmt: skip
PLAIN = eval_transform(img_size=8, mean=[0.0], std=[1.0], interpolation="bilinear", crop_pct=1.0)


def split_of(count: int) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ArraySplit(images, [i % 3 for i in range(count)], "x")


def loader(split: Split, **changes: object) -> Loader:
    options: dict = {"transform": RANDOM, "batch_size": 5, "seed": 7, "shuffle": True, "workers": 0, "num_classes": 3}
    return Loader(split, **{**options, **changes})


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.index, y.index)
        and x.damaged == y.damaged
        for x, y in zip(a, b, strict=True)
    )


def test_batches_are_the_same_for_any_workers_start_and_seed() -> None:
    split = split_of(23)
    alone, helped = loader(split), loader(split, workers=2)
    for epoch in (0, 1):
        whole = list(alone.epoch(epoch))
        assert same(whole, list(helped.epoch(epoch)))
        assert same(whole[3:], list(helped.epoch(epoch, start=3)))
        assert same(whole[3:], list(alone.epoch(epoch, start=3)))
    assert same(list(alone.epoch(0)), list(loader(split).epoch(0))), "no state is kept between epochs"
    assert not same(list(alone.epoch(0)), list(alone.epoch(1)))
    assert not same(list(alone.epoch(0)), list(loader(split, seed=8).epoch(0)))
    assert list(alone.epoch(0, start=5)) == []


def test_an_abandoned_epoch_leaves_nothing_behind() -> None:
    split = split_of(40)
    helped = loader(split, workers=2)
    next(iter(helped.epoch(0)))
    assert same(list(helped.epoch(1)), list(loader(split).epoch(1)))


def test_an_image_is_augmented_alike_in_any_batch_and_anew_each_epoch() -> None:
    split = split_of(10)

    def by_index(batch_size: int, epoch: int) -> dict[int, torch.Tensor]:
        batches = loader(split, batch_size=batch_size).epoch(epoch)
        return {int(i): image for batch in batches for i, image in zip(batch.index, batch.images, strict=True)}

    small, large, later = by_index(2, 0), by_index(7, 0), by_index(2, 1)
    assert all(torch.equal(small[i], large[i]) for i in range(10))
    assert sum(torch.equal(small[i], later[i]) for i in range(10)) < 3


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_neither_reads_nor_moves_the_global_random_numbers(workers: int) -> None:
    split = split_of(12)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(loader(split, workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, list(loader(split, workers=workers).epoch(0)))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5), st.booleans(), st.booleans())
def test_every_image_once(count: int, batch_size: int, epoch: int, shuffle: bool, drop_last: bool) -> None:
    each = loader(split_of(count), transform=PLAIN, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    batches = list(each.epoch(epoch))
    assert len(batches) == len(each)
    seen = [int(i) for batch in batches for i in batch.index]
    expected = count - count % batch_size if drop_last else count
    assert len(seen) == len(set(seen)) == expected
    if not shuffle:
        assert seen == list(range(expected))


def test_a_batch_is_what_the_transform_makes_of_each_image(tmp_path: Path) -> None:
    """Drawn as uint8 in a worker and finished as a batch, or at once: the same bits, erased noise included."""
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 256, (40 + k, 60 - k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.jpg" if k % 3 else tmp_path / f"{k}.png")
    split = FileSplit(tmp_path, sorted(path.name for path in tmp_path.iterdir()), [0] * 12)
    for changes in ({}, {"crop": "padded", "crop_padding": 2, "rotate": 10}, {"erasing_fill": "mean", "flip": 0.0}):
        augment = replace(Augment(rand_augment=1, color_jitter=0.2, erasing=0.6), **changes)
        transform = train_transform(augment, img_size=32, mean=[0.4, 0.5, 0.6], std=[0.2] * 3, interpolation="bicubic")
        expected = {}
        for i in range(12):
            torch.manual_seed(hash_seed(7, 2, i) & 0xFFFFFFFF)
            expected[i] = transform(split.read(i))
        for workers in (0, 2):
            for batch in loader(split, transform=transform, workers=workers, num_classes=1).epoch(2):
                assert batch.images.dtype == torch.float32
                assert batch.images.is_contiguous()
                for i, image in zip(batch.index.tolist(), batch.images, strict=True):
                    assert torch.equal(image, expected[i])


# Going on to the next epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_ahead_changes_nothing(workers: int) -> None:
    split = split_of(23)
    plain, ahead = loader(split), loader(split, workers=workers, ahead=True)
    for epoch, start in [(0, 0), (1, 0), (2, 0), (4, 0), (5, 2), (6, 0), (3, 4), (3, 5), (4, 0)]:
        assert same(list(plain.epoch(epoch, start)), list(ahead.epoch(epoch, start)))
    next(iter(ahead.epoch(5)))  # abandoned
    assert same(list(plain.epoch(6)), list(ahead.epoch(6)))
    scored = loader(split, shuffle=False, workers=workers, ahead=True)
    for _ in range(3):
        assert same(list(loader(split, shuffle=False).epoch(0)), list(scored.epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_beginning_early_changes_nothing(workers: int) -> None:
    split = split_of(23)
    plain, early = loader(split), loader(split, workers=workers, ahead=True)
    for begun, asked in [((0, 0), (0, 0)), ((1, 2), (1, 2)), ((2, 0), (3, 1))]:
        early.begin(*begun)
        assert same(list(plain.epoch(*asked)), list(early.epoch(*asked)))


def niceness(image: torch.Tensor) -> torch.Tensor:
    """How far the process that loads stands back."""
    return torch.full_like(image, os.nice(0), dtype=torch.float32)


def test_processes_that_load_stand_back_for_those_that_compute() -> None:
    found = {float(batch.images.max()) for batch in loader(split_of(20), transform=niceness, workers=2).epoch(0)}
    assert found == {min(os.nice(0) + 15, 19)}


def drowsy(image: torch.Tensor) -> torch.Tensor:
    """0.5 s a batch of 5."""
    time.sleep(0.1)
    return image.float()


def test_the_next_epoch_is_read_while_this_one_is_used() -> None:
    each = loader(split_of(10), transform=drowsy, workers=1, ahead=True)
    list(each.epoch(0))
    time.sleep(0.9)
    began = time.monotonic()
    next(batches := each.epoch(1))
    assert time.monotonic() - began < 0.35, "a batch takes 0.5 s"
    batches.close()


def test_a_worker_that_died_between_epochs_is_named() -> None:
    others = set(multiprocessing.active_children())
    each = loader(split_of(20), workers=1, ahead=True)
    list(each.epoch(0))
    (worker,) = set(multiprocessing.active_children()) - others
    killed(worker)
    with pytest.raises(WorkerDied, match="was killed by SIGKILL"):
        list(each.epoch(1))


def pictures(root: Path, damaged: set[int]) -> Path:
    for k in range(12):
        (root / str(k % 2)).mkdir(exist_ok=True, parents=True)
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (20 * k, 0, 0)).save(buffer, "PNG")
        data = buffer.getvalue()
        (root / str(k % 2) / f"{k:02d}.png").write_bytes(data[:40] if k in damaged else data)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_named_and_left_out(tmp_path: Path, workers: int) -> None:
    pictures(tmp_path / "train", {3, 4, 5})
    pictures(tmp_path / "val", set())
    split = open_source(tmp_path).splits["train"]
    colour = eval_transform(img_size=8, mean=[0.0] * 3, std=[1.0] * 3, interpolation="nearest", crop_pct=1.0)
    each = loader(split, transform=colour, batch_size=2, shuffle=False, workers=workers)
    (tmp_path / "train" / "0" / "00.png").unlink()
    batches = list(each.epoch(0))
    assert [name for batch in batches for name in batch.damaged] == [
        "train/0/00.png", "train/0/04.png", "train/1/03.png", "train/1/05.png",
    ]  # fmt: skip
    assert [len(batch.images) for batch in batches] == [1, 1, 2, 1, 1, 2]
    assert all(len(batch.images) == len(batch.labels) == len(batch.index) for batch in batches)
    for batch in batches:
        for image, i in zip(batch.images, batch.index.tolist(), strict=True):
            assert image[0, 0, 0].item() * 255 == pytest.approx(20 * int(Path(split.name(i)).stem), abs=0.01)


def test_a_batch_may_be_empty(tmp_path: Path) -> None:
    source = open_source(pictures(tmp_path, {0, 2, 4, 6, 8, 10}), val_fraction=0.5)
    batches = list(loader(source.splits["train"], batch_size=3, shuffle=False, transform=lambda x: x).epoch(0))
    assert [len(batch.images) for batch in batches] == [0, 3]
    assert len(batches[0].damaged) == 3
    assert batches[0].labels.shape == (0,)


def test_several_labels_become_multi_hot() -> None:
    split = ArraySplit(np.zeros((3, 8, 8, 1), np.uint8), [[0, 2], [], [1]], "x")
    (batch,) = loader(split, transform=PLAIN, shuffle=False).epoch(0)
    assert batch.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert batch.labels.dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_the_user_arrives_as_its_sentence(workers: int) -> None:
    split = ArraySplit(np.zeros((3, 8, 8, 4), np.uint8), [0, 1, 2], "x")
    with pytest.raises(UserError, match=r"^an image has 4 channels and the model takes 1; set in_chans$"):
        list(loader(split, workers=workers).epoch(0))


# Copies of an image, and several processes


class Counting(ArraySplit):
    """Remembers which images were read."""

    def read(self, i: int) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(i)
        return super().read(i)


def test_copies_follow_each_other_and_are_augmented_each_in_its_own_way() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    split = Counting(images, [0] * 30, "x")

    def copies(**changes: object) -> dict[tuple[int, int], torch.Tensor]:
        seen: Counter[int] = Counter()
        found = {}
        for batch in loader(split, repeats=3, **changes).epoch(1):
            for i, image in zip(batch.index.tolist(), batch.images, strict=True):
                found[i, seen[i]] = image
                seen[i] += 1
        return found

    each = copies(batch_size=30)
    assert split.seen == list(dict.fromkeys(i for i, _ in each)), "read once for three copies"  # type: ignore[attr-defined]
    assert Counter(i for i, _ in each) == dict.fromkeys({i for i, _ in each}, 3)
    for other in (copies(batch_size=4), copies(batch_size=7, workers=2)):
        assert other.keys() == each.keys()
        assert all(torch.equal(each[key], other[key]) for key in each)
    once = {int(i): image for b in loader(split).epoch(1) for i, image in zip(b.index, b.images, strict=True)}
    assert all(torch.equal(each[i, 0], once[i]) for i, _ in each), "the first copy is the image without copies"
    alike = sum(torch.equal(each[i, a], each[i, b]) for i, _ in each for a, b in ((0, 1), (0, 2), (1, 2)))
    assert alike <= 9, "of 90 pairs"


def test_a_rare_class_comes_as_often_each_time_augmented_anew() -> None:
    split = ArraySplit(
        np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), [0] * 38 + [1] * 2, "x"
    )
    batches = list(loader(split, balanced=True, batch_size=8).epoch(0))
    assert [int(batch.labels.sum()) for batch in batches] == [4] * 5
    rare = [image for batch in batches for i, image in zip(batch.index, batch.images, strict=True) if i == 39]
    assert len(rare) == 10
    assert len({image.numpy().tobytes() for image in rare}) >= 8


@pytest.mark.parametrize("options", [{}, {"repeats": 3}, {"balanced": True}, {"shuffle": False}])
def test_processes_share_the_batches_that_one_would_read(options: dict) -> None:
    split = split_of(33)
    whole = list(loader(split, batch_size=8, **options).epoch(2, start=1))
    shares = [list(loader(split, batch_size=8, rank=rank, world=3, **options).epoch(2, start=1)) for rank in range(3)]
    for k, batch in enumerate(whole):
        together = [pair for share in shares for pair in zip(share[k].index.tolist(), share[k].images, strict=True)]
        assert Counter((i, image.numpy().tobytes()) for i, image in together) == Counter(
            (i, image.numpy().tobytes()) for i, image in zip(batch.index.tolist(), batch.images, strict=True)
        )
    assert {len(share) for share in shares} == {4}
    assert [len(share[-1].images) for share in shares] == [1, 0, 0], "33 = 4 x 8 + 1: two shares of the last are empty"


@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("alphas", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_what_processes_mix_is_what_one_would_mix(batch_size: int, alphas: dict) -> None:
    def mixed(batch: Batch) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        torch.manual_seed(11)  # as the training loop does before each step
        images, targets = mix(batch.images, batch.labels, num_classes=3, smoothing=0.1, **alphas)
        return {int(i): each for i, *each in zip(batch.index, images, targets, strict=True)}  # type: ignore[misc]

    split = split_of(27)
    whole = list(loader(split, batch_size=batch_size).epoch(0))
    for rank in range(2):
        for batch, share in zip(whole, loader(split, batch_size=batch_size, rank=rank, world=2).epoch(0), strict=True):
            alone = mixed(batch)
            assert len(share.images)
            for i, (image, target) in mixed(share).items():
                assert torch.equal(image, alone[i][0])
                assert torch.equal(target, alone[i][1])


# Loader processes that end


def lost(each: Loader, end: Callable[[BaseProcess], None]) -> str:
    """What an epoch says one of whose processes meets its end by `end` after the first batch."""
    others = set(multiprocessing.active_children())
    batches = each.epoch(0)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "torch's handler would raise in any line"
    (worker, *_) = set(multiprocessing.active_children()) - others
    end(worker)
    began = time.monotonic()
    with pytest.raises(WorkerDied) as error:
        list(batches)
    assert time.monotonic() - began < 30
    assert isinstance(error.value, UserError)
    return str(error.value).replace(str(worker.pid), "PID")


def killed(worker: BaseProcess) -> None:
    worker.kill()
    worker.join()


def sleepy(image: torch.Tensor) -> torch.Tensor:
    """1 s a batch of 5: the loader is waited for."""
    time.sleep(0.2)
    return image.float()


def test_a_killed_worker_is_named_with_what_to_do() -> None:
    assert lost(loader(split_of(300), workers=2), killed) == (
        "a loader process (pid PID) was killed by SIGKILL; the system does so when memory runs short; try fewer "
        "--data.workers than 2 or a smaller --data.batch-size, and go on with --resume"
    )


def test_a_worker_killed_while_it_is_waited_for() -> None:
    each = loader(split_of(300), transform=sleepy, workers=1)
    said = lost(each, lambda worker: threading.Timer(0.5, worker.terminate).start())
    assert said.startswith("a loader process (pid PID) was killed by SIGTERM; try fewer --data.workers than 1")


def test_a_worker_that_ends_by_itself_and_an_error_that_is_not_its_end() -> None:
    def leaving(image: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        if len(seen) > 12:  # in the third batch, when the first two have long arrived
            time.sleep(1)
            os._exit(3)
        return image.float()

    def broken(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"cannot turn {tuple(image.shape)}")

    seen: list[torch.Tensor] = []
    said = lost(loader(split_of(300), transform=leaving, workers=1), lambda worker: worker.join(10))
    assert said.startswith("a loader process (pid PID) ended with exit code 3; try fewer")
    with pytest.raises(RuntimeError, match=r"^cannot turn \(1, 8, 8\)$"):
        list(loader(split_of(5), transform=broken).epoch(0))


def test_a_worker_whose_pipes_break_long_before_it_has_ended() -> None:
    def lingering() -> None:
        os.closerange(3, 4096)  # as the system does while a process ends; a busy machine takes its time for the rest
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    each = loader(split_of(5))
    worker = multiprocessing.get_context("fork").Process(target=lingering)
    each._workers = [worker]
    worker.start()
    assert multiprocessing.connection.wait([worker.sentinel], timeout=10)
    assert worker.exitcode is None, "its pipe is broken and it still runs"
    with pytest.raises(WorkerDied, match="was killed by SIGKILL"):
        each._refuse_dead(EOFError())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-5, 10**6), min_size=1, max_size=3))
def test_hash_of_neighbours_is_unlike(parts: list[int]) -> None:
    near = [*parts[:-1], parts[-1] + 1]
    changed = (hash_seed(*parts) ^ hash_seed(*near)) & 0xFFFFFFFF
    assert 4 <= changed.bit_count() <= 28
    assert 0 <= hash_seed(*parts) < 2**64
