"""What is kept in memory changes no bit: of pictures that were decoded, of batches whose memory is used again."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from test_pictures import jpeg, photograph

from vitrail.data import cache
from vitrail.data.arrays import open_digits
from vitrail.data.augment import train_transform
from vitrail.data.cache import Kept, free_memory, kept
from vitrail.data.folders import FileSplit
from vitrail.data.loader import Batch, Loader
from vitrail.data.memory import Reused
from vitrail.data.read import ImageError
from vitrail.recipe import Augment

SEEN = train_transform(
    Augment(erasing=0.5), img_size=32, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bicubic"
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> FileSplit:
    """Eight small JPEGs, a grey one and one that EXIF turns among them, a PNG, a large JPEG and a damaged one."""
    for k in range(8):
        image = photograph(50 + k, 70 - k, k)
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(image.convert("L") if k == 3 else image, 6 if k == 5 else 1))
    photograph(40, 40).save(tmp_path / "8.png")
    (tmp_path / "9.jpg").write_bytes(jpeg(photograph(300, 200)))
    (tmp_path / "damaged.jpg").write_bytes(jpeg(photograph(50, 50))[:900])
    names = sorted(path.name for path in tmp_path.iterdir())
    return FileSplit(tmp_path, names, [0] * len(names))


def batches(split: FileSplit | Kept, epoch: int, workers: int) -> list[Batch]:
    each = Loader(split, SEEN, batch_size=4, seed=0, shuffle=True, workers=workers, num_classes=1)
    return [batch for number in range(epoch + 1) for batch in each.epoch(number)]


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_pictures_change_nothing(photos: FileSplit, workers: int) -> None:
    held = kept(photos, 32)
    assert isinstance(held, Kept)
    for found, expected in zip(batches(held, 2, workers), batches(photos, 2, 0), strict=True):
        assert torch.equal(found.images, expected.images)
        assert found.index.tolist() == expected.index.tolist()
        assert found.damaged == expected.damaged
    small = {i for i in range(len(photos)) if photos.name(i) not in ("9.jpg", "damaged.jpg")}
    assert {i for i in range(len(photos)) if held.places[i, 1]} == small, "the workers have kept them for each other"
    (photos.root / "0.jpg").unlink()
    assert held.open(0).whole().shape == (3, 50, 70)
    with pytest.raises(ImageError):
        held.read(0)


def test_no_more_is_kept_than_there_is_room(photos: FileSplit) -> None:
    held = Kept(photos, 64, 3 * 50 * 70 + 100)
    for _ in range(2):
        for i in range(8):
            assert torch.equal(held.open(i).whole(), photos.open(i).whole())
    assert [bool(height) for height in held.places[:, 1]] == [True] + [False] * 10
    assert int(held.used[0]) == 3 * 50 * 70


def test_what_does_not_fit_or_is_an_array_is_not_kept(photos: FileSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = open_digits().splits["train"]
    assert kept(digits, 8) is digits
    assert kept(FileSplit(photos.root, ["9.jpg"], [0]), 32).__class__ is FileSplit, "decoded at a smaller scale"
    assert 0 < free_memory() < 2**50
    assert kept(photos, 32, processes=10**9) is photos
    monkeypatch.setattr(cache, "free_memory", lambda: 0)
    assert kept(photos, 32) is photos


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    memory = Reused()
    first = memory.empty((4, 3, 8, 8))
    place = first.data_ptr()
    view = first[1:]
    del first
    assert memory.empty((4, 3, 8, 8)).data_ptr() != place, "a view holds it"
    weight = torch.ones(1, requires_grad=True)
    total = (weight * view).sum()
    del view
    assert memory.empty((2, 3, 8, 8)).data_ptr() != place, "the backward pass needs it"
    total.backward()
    del total
    gc.collect()
    assert place in [each.ctypes.data for each in memory.free]
    lent = [memory.empty((4, 3, 8, 8)).fill_(k) for k in range(5)]
    assert [each.mean().item() for each in lent] == [0, 1, 2, 3, 4]
    del lent
    gc.collect()
    assert len(memory.free) == 2


def test_a_loaders_batches_may_all_be_held(photos: FileSplit) -> None:
    each = Loader(photos, SEEN, batch_size=2, seed=0, shuffle=True, workers=0, num_classes=1)
    held = list(each.epoch(0))
    copies = [batch.images.clone() for batch in held]
    for epoch in (1, 2):
        for batch in each.epoch(epoch):
            batch.images.zero_()
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))
