"""Batches are pure functions of (seed, epoch, step): for any workers, from any start, whatever else draws numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.arrays import ArraySplit
from vitrail.data.augment import eval_transform, train_transform
from vitrail.data.loader import Batch, Loader, hash_seed
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


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-5, 10**6), min_size=1, max_size=3))
def test_hash_of_neighbours_is_unlike(parts: list[int]) -> None:
    near = [*parts[:-1], parts[-1] + 1]
    changed = (hash_seed(*parts) ^ hash_seed(*near)) & 0xFFFFFFFF
    assert 4 <= changed.bit_count() <= 28
    assert 0 <= hash_seed(*parts) < 2**64
