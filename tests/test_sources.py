"""Every kind of source opens with one string, splits the same way twice, and says in one sentence what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
import tarfile
import tracemalloc
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data import named
from vitrail.data.arrays import ArraySplit
from vitrail.data.compact import Names
from vitrail.data.folders import FileSplit
from vitrail.data.limit import limited
from vitrail.data.read import ImageError
from vitrail.data.sources import Part, Source, class_counts, hold_out, open_source
from vitrail.errors import UserError


def jpeg(seed: int = 0, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def folder(root: Path, layout: dict[str, int]) -> Path:
    """{"train/cat": 3} -> root/train/cat/0.jpg, 1.jpg, 2.jpg, each picture another."""
    for number, (name, count) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            (root / name / f"{k}.jpg").write_bytes(jpeg(100 * number + k))
    return root


def names(source: Source, split: str) -> list[str]:
    return [source.splits[split].name(i) for i in range(len(source.splits[split]))]


def labels_of(source: Source, split: str) -> list:
    return np.asarray(source.splits[split].labels).tolist()


def named_labels(source: Source, split: str) -> list[tuple[str, int]]:
    return list(zip(names(source, split), labels_of(source, split), strict=True))


def refusal(text: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# digits


def test_digits() -> None:
    source, again = open_source("digits"), open_source("digits", seed=5, val_fraction=0.5)
    train, test = source.splits["train"], source.splits["test"]
    assert (len(train), len(test), source.in_chans, len(source.classes)) == (1437, 360, 1, 10)
    assert labels_of(again, "train") == labels_of(source, "train")
    assert train.read(0).shape == (1, 8, 8)
    assert torch.stack([train.read(i) for i in range(100)]).max() == 255
    assert min(Counter(labels_of(source, "test")).values()) >= 34


# folders


def test_folder_without_split_is_split_by_class_and_seed(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"dog": 10, "cat": 20})
    source = open_source(root)
    assert source.classes == ["cat", "dog"]
    assert Counter(labels_of(source, "val")) == {0: 4, 1: 2}
    assert sorted(names(source, "train") + names(source, "val")) == sorted(
        f"{c}/{k}.jpg" for c, n in (("dog", 10), ("cat", 20)) for k in range(n)
    )
    assert names(open_source(root), "val") == names(source, "val")
    assert names(open_source(root, seed=1), "val") != names(source, "val")
    assert all(source.classes[label] in name for name, label in named_labels(source, "val"))
    assert source.splits["train"].read(0).shape == (3, 10, 12)


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val"])
def test_folder_with_split(tmp_path: Path, word: str) -> None:
    layout = {"train/a": 2, "train/b": 3, f"{word}/a": 1, f"{word}/b": 2, "test/b": 1}
    source = open_source(folder(tmp_path, layout))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 5, "val": 3, "test": 1}
    assert labels_of(source, "test") == [1]
    assert names(source, "test") == ["test/b/0.jpg"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_source(folder(tmp_path, {"bus": 3, "train": 3})).classes == ["bus", "train"]


def test_folder_refusals(tmp_path: Path) -> None:
    folder(tmp_path / "photos", {"a": 2})
    assert "did you mean 'photos'" in refusal(tmp_path / "photo")
    assert "does not exist" in refusal(tmp_path / "no" / "such")
    assert "one class only ('a')" in refusal(tmp_path / "photos")
    assert "has no class folders" in refusal(folder(tmp_path / "bare", {"": 0}))
    assert "pictures but no class folders" in refusal(folder(tmp_path / "loose", {"": 2}))
    assert "'empty'" in refusal(folder(tmp_path / "hole", {"a": 2, "b": 2, "empty": 0}))
    strange = folder(tmp_path / "odd", {"train/a": 1, "train/b": 1, "val/c": 1})
    assert "val has class 'c', which train lacks" in refusal(strange)
    assert "no train/" in refusal(folder(tmp_path / "half", {"val/a": 1, "test/a": 1}))
    assert "one image of each class" in refusal(folder(tmp_path / "few", {"a": 1, "b": 1}))
    assert "both" in refusal(folder(tmp_path / "twice", {"train/a": 1, "val/a": 1, "valid/a": 1}))


def test_unknown_words_name_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "did you mean 'digits'" in refusal("digit")
    assert "did you mean 'cifar10'" in refusal("CIFAR-10")
    assert refusal("./photo") == "there is no file or folder ./photo; did you mean 'photos'?"
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "kind" in refusal("a.zip")


def test_links_pipes_and_droppings(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", {"class_a": 2, "class_b": 2})
    outside = folder(tmp_path / "elsewhere", {"more": 2})
    os.symlink("..", root / "class_a" / "loop")
    os.symlink("gone.jpg", root / "class_a" / "dead.jpg")
    os.symlink(root / "class_a", root / "class_b" / "sibling")
    os.symlink(outside / "more", root / "class_b" / "linked")
    os.mkfifo(root / "class_b" / "pipe.jpg")
    for name in (".hidden.jpg", "._0.jpg", "Thumbs.db", ".DS_Store", "notes.txt"):
        (root / "class_a" / name).write_bytes(b"no picture")
    (root / "class_a" / "bare").write_bytes(jpeg(7))
    (root / "class_a" / "README").write_text("no picture")
    (root / "class_a" / "UPPER.JPG").write_bytes(jpeg(8))
    (root / "class_a" / "album.jpg").mkdir()
    (root / "class_a" / "album.jpg" / "inner.jpg").write_bytes(jpeg(9))
    source = open_source(root)
    found = sorted(names(source, "train") + names(source, "val"))
    assert found == [
        "class_a/0.jpg", "class_a/1.jpg", "class_a/UPPER.JPG", "class_a/album.jpg/inner.jpg", "class_a/bare",
        "class_b/0.jpg", "class_b/1.jpg", "class_b/linked/0.jpg", "class_b/linked/1.jpg",
    ]  # fmt: skip
    said = "; ".join(source.notes)
    for word in ("loop", "dead.jpg", "sibling", "pipe.jpg", "1 .db", "1 .txt", "1 no extension"):
        assert word in said, word


def test_a_class_that_is_a_link_and_a_split_that_shares_it(tmp_path: Path) -> None:
    store = folder(tmp_path / "store", {"cat": 2, "dog": 2})
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            os.symlink(store / name, tmp_path / "set" / split / name)
    assert len(open_source(tmp_path / "set").splits["val"]) == 4


def test_odd_names(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "hostile" / "odd_names.tar") as tar:
        for member in tar:  # extractall's filter came with Python 3.11.4
            if file := tar.extractfile(member):
                target = tmp_path / "set" / "odd" / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read())
    folder(tmp_path / "set", {"plain": 3})
    source = open_source(tmp_path / "set")
    odd = [name for split in source.splits for name in names(source, split) if name.startswith("odd/")]
    assert len(odd) == 16, "14 in the folder, one in 'class a', one in album.jpg"
    assert "odd/line\nbreak.jpg" in odd
    assert "odd/noextension" in odd
    for split in source.splits.values():
        for i in range(len(split)):
            assert split.read(i).shape[0] == 3
    assert "'emptyclass'" in refusal(tmp_path / "set" / "odd")


def test_a_picture_that_vanishes_is_called_by_its_name_in_the_source(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path, {"a": 3, "b": 3}))
    (tmp_path / names(source, "train")[0]).unlink()
    with pytest.raises(ImageError) as caught:
        source.splits["train"].read(0)
    assert caught.value.path == names(source, "train")[0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.05, 0.9), st.integers(-3, 10))
def test_holding_out_keeps_every_image_once_and_every_class_in_train(
    labels: list[int], share: float, seed: int
) -> None:
    split = ArraySplit(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, "x")
    source = Source("x", list("abcde"), {"train": split})
    if max(Counter(labels).values()) == 1:
        with pytest.raises(UserError):
            hold_out(source, seed=seed, val_fraction=share)
        return
    parts = hold_out(source, seed=seed, val_fraction=share).splits
    kept, held = parts["train"], parts["val"]
    assert isinstance(kept, Part)
    assert isinstance(held, Part)
    assert sorted([*kept.indices, *held.indices]) == list(range(len(labels)))
    assert set(kept.labels) == set(labels)


# millions of images


def by_the_book(labels: list, seed: int, share: float) -> list[int]:
    """The images held out, class by class in plain Python."""
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label if isinstance(label, int) else 0, []).append(i)
    held: list[int] = []
    for key, members in groups.items():
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        held += [members[i] for i in np.random.default_rng([seed % 2**64, key]).permutation(len(members))[:count]]
    return sorted(held)


def in_turn(labels: list, most: int, seed: int) -> list[int]:
    """The first images of all classes in turn, in plain Python."""
    by_class: dict[object, list[int]] = {}
    for i in np.random.default_rng(seed).permutation(len(labels)).tolist():
        by_class.setdefault(tuple(labels[i]) if isinstance(labels[i], list) else labels[i], []).append(i)
    rounds = chain.from_iterable(zip_longest(*(by_class[key] for key in sorted(by_class, key=str))))
    return sorted([i for i in rounds if i is not None][:most])


one_label = st.lists(st.integers(0, 12), min_size=2, max_size=80)
several_labels = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=2, max_size=80)


@settings(deadline=None, max_examples=60)
@given(st.one_of(one_label, several_labels), st.floats(0.05, 0.9), st.integers(-3, 10), st.integers(1, 79))
def test_arrays_hold_out_and_limit_as_lists_do(labels: list, share: float, seed: int, most: int) -> None:
    whole = ArraySplit(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, "x")
    source = Source("x", [str(k) for k in range(13)], {"train": whole})
    said = Counter(k for label in labels for k in (label if isinstance(label, list) else [label]))
    assert class_counts(source, whole) == {str(k): said[k] for k in range(13)}
    few = limited(source, most, abs(seed)).splits["train"]
    if most < len(labels):
        assert isinstance(few, Part)
        assert few.indices.tolist() == in_turn(labels, most, abs(seed))
    expected = by_the_book(labels, seed, share)
    if expected:
        held = hold_out(source, seed=seed, val_fraction=share).splits["val"]
        assert isinstance(held, Part)
        assert held.indices.tolist() == expected
        assert np.asarray(held.labels, dtype=object).tolist() == [labels[i] for i in expected]


def test_the_images_held_out_are_those_of_every_run_so_far() -> None:
    labels = (np.random.default_rng(1).integers(0, 30, 5000) ** 2 // 30).tolist()
    source = Source("x", [str(k) for k in range(31)], {"train": ArraySplit(np.zeros((5000, 1, 1, 1)), labels, "x")})
    parts = limited(hold_out(source, seed=7, val_fraction=0.13), 700, 3).splits
    found = [hashlib.sha256(json.dumps(parts[name].indices.tolist()).encode()).hexdigest()[:16] for name in parts]
    assert found == ["a03c3d18bb766751", "2d8b8353e3d2e931"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(min_size=1).map(os.fsdecode)))
def test_names_are_kept_byte_for_byte(names: list[str]) -> None:
    kept = Names(names)
    assert (len(kept), list(kept)) == (len(names), names)
    assert list(pickle.loads(pickle.dumps(kept))) == names


def test_an_index_is_small() -> None:
    images, classes = 100_000, 100
    tracemalloc.start()
    paths = (f"train/n{i % classes:08d}/n{i % classes:08d}_{i}.jpg" for i in range(images))
    split = FileSplit(Path(), paths, np.arange(images) % classes)
    source = hold_out(Source("x", [str(k) for k in range(classes)], {"train": split}), seed=0, val_fraction=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / images < 150, "bytes an image; its path has 36"
    assert len(source.splits["train"]) == 0.9 * images
    assert split.name(99_999) == "train/n00000099/n00000099_99999.jpg"


# arrays


def test_npz_of_every_naming(tmp_path: Path) -> None:
    x, y = np.arange(8 * 5 * 4, dtype=np.uint8).reshape(8, 5, 4), np.array([0, 1] * 4)
    np.savez(tmp_path / "keras.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2], class_names=["no", "yes"])
    source = open_source(tmp_path / "keras.npz")
    assert (source.classes, source.in_chans, source.name) == (["no", "yes"], 1, "keras")
    assert torch.equal(source.splits["train"].read(3)[0], torch.from_numpy(x[3]))
    rgb = np.stack([x] * 3, axis=3)
    np.savez_compressed(
        tmp_path / "medmnist.npz", train_images=rgb, train_labels=y[:, None], val_images=rgb, val_labels=y[:, None]
    )
    source = open_source(tmp_path / "medmnist.npz")
    assert (source.in_chans, list(source.splits), labels_of(source, "val")) == (3, ["train", "val"], y.tolist())
    many = np.array([[1, 0, 1], [0, 0, 0]] * 4)
    np.savez(tmp_path / "chest.npz", train_images=x, train_labels=many)
    source = open_source(tmp_path / "chest.npz", val_fraction=0.5)
    assert source.multi_label
    assert [0, 2] in source.splits["train"].labels + source.splits["val"].labels


def test_npz_is_mapped_and_travels_light(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(50) % 2)
    split = open_source(tmp_path / "a.npz").splits["train"]
    sent = pickle.dumps(split)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent).read(7), split.read(7))


def test_npz_refusals(tmp_path: Path) -> None:
    x, y = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1])
    for name, members, word in [
        ("float", {"x_train": x.astype(np.float32), "y_train": y}, "uint8"),
        ("count", {"x_train": x, "y_train": y[:3]}, "3 labels for 4 images"),
        ("none", {"images": x}, "x_train"),
        ("object", {"x_train": x, "y_train": np.array([None, {}, 1, 2], dtype=object)}, "pickle"),
        ("shape", {"x_train": x[0], "y_train": y}, "(N, H, W)"),
        ("negative", {"x_train": x, "y_train": y - 1}, "count from 0"),
        ("one", {"x_train": x, "y_train": y * 0}, "one class only"),
        ("stranger", {"x_train": x, "y_train": y, "x_val": x, "y_val": y + 1}, "which train lacks"),
        ("names", {"x_train": x, "y_train": y, "class_names": ["a"]}, "1 names"),
        ("real", {"x_train": x, "y_train": y + 0.5}, "whole numbers"),
    ]:
        np.savez(tmp_path / f"{name}.npz", **members)
        assert word in refusal(tmp_path / f"{name}.npz"), name
    (tmp_path / "broken.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:300])
    assert "cannot be read" in refusal(tmp_path / "broken.npz")


def test_cifar_subset(shared_data: Path) -> None:
    source = open_source(shared_data / "cifar10_subset.npz")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 10_000, "test": 2_000}
    assert source.classes[:2] == ["airplane", "automobile"]


# shards


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    import webdataset

    with webdataset.TarWriter(str(path)) as sink:
        for key, members in samples.items():
            sink.write({"__key__": key, **members})
    return path


def test_shards_by_brace_glob_and_path(tmp_path: Path) -> None:
    for number in range(3):
        samples = {f"s{number}{k}": {"jpg": jpeg(10 * number + k), "cls": str(k % 2).encode()} for k in range(6)}
        shard(tmp_path / f"{number:03d}.tar", samples)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    braces = open_source(f"{tmp_path}/{{000..002}}.tar")
    assert braces.classes == ["cat", "dog"]
    assert len(braces.splits["train"]) + len(braces.splits["val"]) == 18
    globbed = open_source(f"{tmp_path}/*.tar")
    assert names(globbed, "val") == names(braces, "val")
    single = open_source(tmp_path / "001.tar")
    assert set(names(single, "train")) | set(names(single, "val")) == {f"001.tar/s1{k}.jpg" for k in range(6)}
    i = names(single, "train").index("001.tar/s12.jpg") if "001.tar/s12.jpg" in names(single, "train") else 0
    key = int(names(single, "train")[i][-5])
    assert torch.equal(single.splits["train"].read(i), decoded(jpeg(10 + key)))
    assert "1 of 4 shards are missing" in refusal(f"{tmp_path}/{{000..003}}.tar")
    assert "no shard matches" in refusal(f"{tmp_path}/x*.tar")


def decoded(data: bytes) -> torch.Tensor:
    from vitrail.data.read import decode_image

    return decode_image(data, "x")


def test_shards_with_splits_and_names(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        label = [json.dumps({"label": 10 * k, "name": "ab"[k]}).encode() for k in (0, 1)]
        samples = {f"{split}{k}": {"png": jpeg(k, "PNG"), "json": label[k % 2]} for k in range(count)}
        shard(tmp_path / f"{split}-000.tar", samples)
    source = open_source(f"{tmp_path}/*.tar")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 4, "val": 2}
    assert (source.classes, labels_of(source, "val")) == (["a", "b"], [0, 1])
    assert "numbered anew" in source.notes[0]


def test_shard_refusals(shared_data: Path, tmp_path: Path) -> None:
    assert "has no label" in refusal(shared_data / "coco_captions" / "val.tar")
    assert "one image of each class" in refusal(shared_data / "photos.tar")
    path = shard(tmp_path / "a.tar", {f"s{k}": {"jpg": jpeg(k), "cls": str(k % 2).encode()} for k in range(6)})
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as tar:
        tar.add(path, "x")
    assert "uncompressed" in refusal(tmp_path / "gz.tar")
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match="truncated"):
        source.splits["train"].read(len(source.splits["train"]) - 1)


# tables


def test_csv_of_every_header(tmp_path: Path) -> None:
    folder(tmp_path, {"img": 6})
    rows = [f"img/{k}.jpg" for k in range(6)]
    splits = ["train"] * 4 + ["valid"] * 2
    lines = [f"{path},{'ab'[k % 2]},{splits[k]}\n" for k, path in enumerate(rows)]
    (tmp_path / "one.csv").write_text("path,label,split\n" + "".join(lines))
    source = open_source(tmp_path / "one.csv")
    assert (source.classes, source.multi_label, labels_of(source, "val")) == (["a", "b"], False, [0, 1])
    assert source.splits["train"].read(0).shape == (3, 10, 12)
    lines = [f"{path},{'x|y' if k else ''}\n" for k, path in enumerate(rows)]
    (tmp_path / "several.csv").write_text("path,labels\n" + "".join(lines), encoding="utf-8-sig")
    source = open_source(tmp_path / "several.csv")
    assert (source.classes, source.multi_label) == (["x", "y"], True)
    assert sorted(source.splits["train"].labels + source.splits["val"].labels) == [[], *[[0, 1]] * 5]
    (tmp_path / "columns.tsv").write_text("path\tx\ty\n" + "".join(f"{p}\t1\t{k % 2}\n" for k, p in enumerate(rows)))
    source = open_source(tmp_path / "columns.tsv")
    assert source.multi_label
    assert [0, 1] in source.splits["train"].labels


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("file,label\na.jpg,1\n", "no column 'path'"),
        ("path\na.jpg\n", "no column 'label'"),
        ("path,label\n", "lists no images"),
        ("", "lists no images"),
        ("path,label\na.jpg\n", "line 2"),
        ("path,label\na.jpg,\n", "line 2: the label is empty"),
        ("path,label,split\na.jpg,x,trian\n", "did you mean 'train'"),
        ("path,x,y\na.jpg,1,2\n", "must be 0 or 1"),
        ("path,label\ngone.jpg,x\ngone2.jpg,y\n", "2 of 2 listed files are missing: gone.jpg (line 2)"),
        ("path,label,label\na,b,c\n", "twice"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert word in refusal(tmp_path / "t.csv")


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(jpeg())
    assert "UTF-8" in refusal(tmp_path / "t.csv")


# torchvision's sets by name


def test_named_sets_that_are_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path))
    root = tmp_path / "datasets"
    folder(root / "eurosat" / "2750", {"Forest": 5, "River": 5})
    source = open_source("EuroSAT")
    assert source.classes == ["Forest", "River"]
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "val": 2}
    assert source.splits["train"].read(0).shape == (3, 10, 12)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(range(256)) * (count * 784 // 256 + 1))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(range(count))
        )
    images = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(images[: 16 + 6 * 784])
    (raw / "t10k-images-idx3-ubyte").write_bytes(images[:4] + (3).to_bytes(4, "big") + images[8 : 16 + 3 * 784])
    source = open_source("mnist")
    assert (source.in_chans, labels_of(source, "test"), len(source.classes)) == (1, [0, 1, 2], 10)
    assert source.splits["train"].read(0).shape == (1, 28, 28)


def test_a_download_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fail(_: object) -> None:
        raise OSError("no network\nhere")

    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    assert "could not be downloaded there (no network here)" in refusal("cifar10")


def test_every_named_set_is_torchvisions() -> None:
    from torchvision import datasets

    assert all(hasattr(datasets, entry.cls) for entry in named.NAMED.values())
    assert all(name == name.lower() for name in named.NAMED)


# the Hugging Face hub


def test_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": jpeg(k), "path": None} for k in range(8)], "label": [k % 2 for k in range(8)]}
    rows["image"][3] = {"bytes": b"broken", "path": None}
    train = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": train, "validation": train.select(range(4))}).save_to_disk(str(tmp_path / "set"))
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert (source.classes, list(source.splits)) == (["cat", "dog"], ["train", "val"])
    assert torch.equal(source.splits["val"].read(2), decoded(jpeg(2)))
    with pytest.raises(ImageError, match=r"train\[3\]"):
        source.splits["train"].read(3)
    words = datasets.Dataset.from_dict({"image": rows["image"], "label": list("xyxyxyxy")})
    words = words.cast_column("image", datasets.Image())
    words.save_to_disk(str(tmp_path / "words"))
    assert open_source(f"hf:{tmp_path / 'words'}").classes == ["x", "y"]
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    assert "no column of images" in refusal(f"hf:{tmp_path / 'text'}")


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'vitrail[data]'" in refusal("hf:mnist")
