"""Shards hold every readable image of a source, byte for byte or pixel for pixel; a set is whole or is not there."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import vitrail
from PIL import Image

from vitrail.data import write_shards as module
from vitrail.data.sources import Source, find_source, open_source
from vitrail.data.write_shards import write_shards
from vitrail.errors import UserError


def picture(seed: int, form: str = "JPEG", side: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def folder(root: Path, train: int = 30, val: int = 8) -> Path:
    """Two classes of pictures of every format; JPEGs are called .png, as happens."""
    forms = ("JPEG", "PNG", "WEBP", "BMP")
    for split, count in (("train", train), ("val", val)):
        for k in range(count):
            path = root / split / ("cat", "dog ü")[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(1000 * (split == "val") + k, forms[k % 4]))
    return root


def contents(source: Source, split: str) -> Counter[tuple[bytes, str]]:
    images, labels = source.splits[split], source.splits[split].labels
    several = (label if isinstance(label, list) else [label] for label in labels)
    named = [",".join(source.classes[each] for each in label) for label in several]
    return Counter((images.encoded(i) or images.read(i).numpy().tobytes(), named[i]) for i in range(len(images)))


def refusal(source: str | Path, out: Path, **options: int) -> str:
    with pytest.raises(UserError) as caught:
        write_shards(source, out, progress=False, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists() or list(out.iterdir()) == []
    return str(caught.value)


def hidden(where: Path) -> list[Path]:
    return [path for path in where.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_copied_byte_for_byte(tmp_path: Path, workers: int) -> None:
    source = folder(tmp_path / "set", train=70)
    written = write_shards(source, tmp_path / "a" / "out", images_per_shard=25, workers=workers, progress=False)
    assert written["splits"]["train"].keys() == {"images", "shards", "bytes"}
    assert {name: (split["images"], split["shards"]) for name, split in written["splits"].items()} == {
        "train": (70, 3), "val": (8, 1),
    }  # fmt: skip
    out = tmp_path / "a" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "classes.json", "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
    ]  # fmt: skip
    before, after = open_source(source), open_source(f"{out}/*.tar")
    assert after.classes == before.classes == written["classes"] == ["cat", "dog ü"]
    for split in ("train", "val"):
        assert contents(after, split) == contents(before, split)
    labels = after.splits["train"].labels
    assert 5 < sum(map(bool, labels[:20])) < 15, "a shard is mixed"
    again = write_shards(source, tmp_path / "b", images_per_shard=25, workers=2 - workers, progress=False)
    assert again["splits"] == written["splits"]
    for path in out.iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), "the same for any workers, at any time"
    write_shards(source, tmp_path / "c", images_per_shard=25, workers=0, seed=1, progress=False)
    assert (tmp_path / "c" / "train-000000.tar").read_bytes() != (out / "train-000000.tar").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_package_webdataset_reads_them(tmp_path: Path) -> None:
    """It leaves its files to the garbage collector, hence the ignored warnings and the collection at the end."""
    import webdataset

    source, out = folder(tmp_path / "set"), tmp_path / "out"
    write_shards(source, out, images_per_shard=12, progress=False)
    shards = [str(path) for path in sorted(out.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    classes = json.loads((out / "classes.json").read_text())
    first_bytes = {"jpg": b"\xff\xd8", "png": b"\x89P", "webp": b"RI", "bmp": b"BM"}
    found: Counter[tuple[bytes, str]] = Counter()
    for sample in samples:
        (form,) = first_bytes.keys() & sample.keys()
        assert sample[form].startswith(first_bytes[form])
        found[sample[form], classes[int(sample["cls"])]] += 1
    assert found == contents(open_source(source), "train")
    decoded = webdataset.WebDataset(str(out / "val-000000.tar"), shardshuffle=False).decode().to_tuple("cls")
    assert Counter(label for (label,) in decoded) == {0: 4, 1: 4}
    del decoded, samples
    gc.collect()


def test_arrays_keep_every_pixel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 7, 5, 3), dtype=np.uint8)
    labels = np.arange(40) % 3
    np.savez(tmp_path / "a.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    write_shards(tmp_path / "a.npz", tmp_path / "out", progress=False)
    after = open_source(f"{tmp_path}/out/*.tar")
    for split, part in (("train", slice(0, 30)), ("test", slice(30, 40))):
        mine = after.splits[split]
        read = Counter((mine.read(i).numpy().tobytes(), mine.labels[i]) for i in range(len(mine)))
        expected = zip(images[part].transpose(0, 3, 1, 2), labels[part].tolist(), strict=True)
        assert read == Counter((image.tobytes(), label) for image, label in expected)


def test_grey_digits_come_back_as_three_equal_channels(tmp_path: Path) -> None:
    write_shards("digits", tmp_path / "out", workers=0, progress=False)
    before, after = open_source("digits"), open_source(f"{tmp_path}/out/*.tar")
    for split in before.splits:
        mine, theirs = after.splits[split], before.splits[split]
        grey = [mine.read(i) for i in range(len(mine))]
        assert all(torch.equal(image, image[:1].expand(3, -1, -1)) for image in grey)
        found = Counter((image[:1].numpy().tobytes(), label) for image, label in zip(grey, mine.labels, strict=True))
        assert found == Counter((theirs.read(i).numpy().tobytes(), theirs.labels[i]) for i in range(len(theirs)))


def test_several_labels_an_image(tmp_path: Path) -> None:
    source = folder(tmp_path / "set")
    several = ["sky|sea", "", "sea", "land|sky|sea"]
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in source.rglob("*.png"))
    rows = [f"{path},{several[k % 4]},{path.split('/')[1]}" for k, path in enumerate(paths)]
    (tmp_path / "table.csv").write_text("\n".join(["path,labels,split", *rows]) + "\n")
    written = write_shards(tmp_path / "table.csv", tmp_path / "out", progress=False)
    before, after = open_source(tmp_path / "table.csv"), open_source(f"{tmp_path}/out/*.tar")
    assert before.multi_label
    assert after.multi_label
    assert written["multi_label"]
    assert after.classes == before.classes == ["land", "sea", "sky"]
    for split in ("train", "val"):
        assert contents(after, split) == contents(before, split)


def test_lists_of_names_and_lists_among_single_labels(tmp_path: Path) -> None:
    def shard(labels: list[object]) -> Path:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for k, label in enumerate(labels):
                for name, data in (("png", picture(k, "PNG")), ("json", json.dumps({"label": label}).encode())):
                    member = tarfile.TarInfo(f"{k}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return tmp_path / "x.tar"

    source = find_source(shard([["b", "a"], [], ["c"]]))
    assert (source.multi_label, source.classes) == (True, ["a", "b", "c"])
    assert source.splits["train"].labels == [[1, 0], [], [2]]
    assert find_source(shard([[5], [3, 5]])).splits["train"].labels == [[1], [0, 1]]
    with pytest.raises(UserError, match=r"some samples have a list of labels and others one; write \[3\]"):
        find_source(shard([[1], 2]))
    wrongs: list[list[Any]] = [[[True]], [[-1]], [[""]], [[[1]]], [None], [False]]
    for wrong in wrongs:
        with pytest.raises(UserError, match=r"has no label in 0\.json"):
            find_source(shard(wrong))


def test_damaged_images_are_named_counted_and_left_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "set")
    (source / "train" / "cat" / "0.png").write_bytes(picture(0)[:100])
    (source / "train" / "cat" / "2.png").write_bytes(b"")
    (source / "val" / "dog ü" / "1.png").write_bytes(b"this is text")
    said = vitrail("shard", source, tmp_path / "out", "--images-per-shard", 28)
    assert said.code == 0
    assert sorted(said.err.splitlines()) == [
        "left out: train: train/cat/0.png (the file is truncated)",
        "left out: train: train/cat/2.png (the file is empty)",
        "left out: val: val/dog ü/1.png (it is text, not a picture (it begins 'this is text'))",
    ]
    assert said.out.splitlines()[0].startswith("train: 28 images in 1 shard, ")
    assert said.out.splitlines()[-2:] == [
        "left out: 3 damaged images",
        f"train on them with: vitrail train '{tmp_path}/out/*.tar'",
    ]
    assert {name: len(split) for name, split in open_source(f"{tmp_path}/out/*.tar").splits.items()} == {
        "train": 28, "val": 7,
    }  # fmt: skip
    as_json = vitrail("shard", source, tmp_path / "again", "--json").json()
    assert as_json["splits"]["train"]["images"] == 28
    assert {(each["split"], each["file"]) for each in as_json["damaged"]} == {
        ("train", "train/cat/0.png"), ("train", "train/cat/2.png"), ("val", "val/dog ü/1.png"),
    }  # fmt: skip


def test_refusals(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", train=4, val=2)
    (tmp_path / "there").mkdir()
    assert f"{tmp_path}/there exists; shards are written into a new folder" in refusal(source, tmp_path / "there")
    assert "--images-per-shard is 0" in refusal(source, tmp_path / "out", images_per_shard=0)
    np.savez(tmp_path / "four.npz", x_train=np.zeros((4, 5, 5, 4), np.uint8), y_train=np.array([0, 1, 0, 1]))
    assert "images of 4 channels" in refusal(tmp_path / "four.npz", tmp_path / "out")
    assert "does not exist" in refusal(tmp_path / "none" / "set", tmp_path / "out")
    for path in source.glob("train/*/*"):
        path.write_bytes(b"")
    assert "no image of train can be read; `vitrail doctor" in refusal(source, tmp_path / "out")
    assert hidden(tmp_path) == []


def test_a_killed_run_leaves_no_half_set_and_the_next_one_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*what: Any) -> None:
        time.sleep(0.02)
        once(*what)

    once = module._add
    source, out, partial = folder(tmp_path / "set", train=60), tmp_path / "out", tmp_path / ".out.vitrail-partial"
    with monkeypatch.context() as patched:
        patched.setattr(module, "_add", slowly)
        options = {"images_per_shard": 5, "workers": 0, "progress": False}
        process = multiprocessing.get_context("fork").Process(target=write_shards, args=(source, out), kwargs=options)
        process.start()
    until = time.monotonic() + 30
    while not (partial / "train-000002.tar").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert hidden(tmp_path) == [partial]
    assert not out.exists()
    write_shards(source, out, images_per_shard=7, progress=False)
    assert hidden(tmp_path) == []
    assert contents(open_source(f"{out}/*.tar"), "train") == contents(open_source(source), "train")


def test_ctrl_c_removes_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder(tmp_path / "set"), tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_photographs_survive(tmp_path: Path, shared_data: Path) -> None:
    """Tar shards are a source too: written anew, they hold the same files."""
    source = f"{shared_data}/photos.tar"
    before = find_source(source)
    write_shards(source, tmp_path / "out", images_per_shard=4, progress=False)
    assert contents(find_source(f"{tmp_path}/out/*.tar"), "train") == contents(before, "train")
