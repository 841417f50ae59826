"""`doctor` finds what was planted in a folder, says it as JSON and as tables, and `show_batch` draws what trains."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vitrail.data.doctor import _look, doctor, print_findings
from vitrail.data.show import show_batch
from vitrail.data.sources import Split
from vitrail.data.write_shards import _read
from vitrail.errors import UserError
from vitrail.recipe import Augment


def planted(root: Path) -> Path:
    """A folder with one of everything that doctor looks for."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for k in range(count):
            path = root / split / ("cat" if k % 4 else "dog") / f"{k:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(cat / "turned.jpg", exif=exif)
    Image.new("CMYK", (40, 40)).save(cat / "cmyk.jpg")
    Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(cat / "[red]alpha.png")
    Image.new("RGB", (40, 40), "blue").save(cat / "misnamed.png", "JPEG")
    Image.new("RGB", (8, 8), "green").save(cat / "small.png")
    Image.new("RGB", (40, 300), "white").save(cat / "long.bmp")
    (cat / "broken.jpg").write_bytes((cat / "01.jpg").read_bytes()[:400])
    (cat / "empty.jpg").write_bytes(b"")
    shutil.copy(cat / "01.jpg", root / "val" / "cat" / "leak.jpg")
    shutil.copy(cat / "02.jpg", dog / "unlike.jpg")
    return root


def files(some: dict) -> list[str]:
    assert some["count"] == len(some["listed"])
    return [entry["file"].rpartition("/")[2] for entry in some["listed"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_planted_is_found(tmp_path: Path, workers: int) -> None:
    report = doctor(str(planted(tmp_path / "pets")), workers=workers, progress=False)
    assert json.loads(json.dumps(report)) == report
    assert {e["file"]: e["reason"].split()[-1] for e in report["damaged"]} == {
        "train/cat/broken.jpg": "truncated",
        "train/cat/empty.jpg": "empty",
    }
    assert report["splits"]["train"] == {"images": 21, "readable": 19, "per_class": {"cat": 17, "dog": 4}}
    assert report["imbalance"] == 4.25
    assert files(report["odd_modes"]) == ["[red]alpha.png", "cmyk.jpg"]
    assert files(report["misnamed"]) == ["misnamed.png"]
    assert files(report["turned"]) == ["turned.jpg"]
    assert files(report["small"]) == ["small.png"]
    assert files(report["long"]) == ["long.bmp"]
    copies = report["duplicates"]
    assert (copies["count"], copies["across_splits"], copies["unlike_labels"]) == (2, 1, 1)
    leak = [{"split": "train", "file": "train/cat/01.jpg"}, {"split": "val", "file": "val/cat/leak.jpg"}]
    assert copies["listed"][0] == leak
    assert report["sizes"]["height"] == {"min": 8, "median": 40, "max": 300}
    assert report["formats"] == {"JPEG": 21, "PNG": 2, "BMP": 1}
    assert report["problems"] == []


def test_tables_say_it(tmp_path: Path) -> None:
    report = doctor(str(planted(tmp_path / "pets")), workers=0)
    page = io.StringIO()
    print_findings(report, Console(file=page, width=120))
    for words in ("broken.jpg", "the file is truncated", "1 across splits", "[red]alpha.png", "longer than 4 : 1: 1"):
        assert words in page.getvalue(), words


def test_labels_that_cannot_be_trained_on_are_findings(tmp_path: Path) -> None:
    root = planted(tmp_path / "pets")
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "empty").mkdir()
    report = doctor(str(root), workers=0)
    assert len(report["damaged"]) == 2
    assert any("'empty'" in sentence for sentence in report["problems"])
    assert any("'dog', which train lacks" in sentence for sentence in report["problems"])
    with pytest.raises(UserError, match="no file or folder"):
        doctor(str(tmp_path / "pet.csv"))


def test_arrays_and_shards(tmp_path: Path, shared_data: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    x[3] = x[0]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1] * 3, x_test=x[:1], y_test=[0])
    report = doctor(str(tmp_path / "a.npz"))
    same = [entry["file"] for entry in report["duplicates"]["listed"][0]]
    assert same == ["train[0]", "train[3]", "test[0]"]
    assert (report["modes"], report["sizes"]["width"]["max"]) == ({"L": 7}, 7)
    photos = doctor(str(shared_data / "photos.tar"))
    assert (photos["splits"]["train"]["readable"], photos["modes"]) == (200, {"RGB": 192, "L": 8})
    assert files(photos["turned"]) == ["n02951585_can_opener.jpg"]
    assert photos["odd_modes"]["count"] == 8


def test_show_batch_draws_rows_of_versions(tmp_path: Path) -> None:
    augment = Augment(crop="padded", rand_augment=1, mixup=0.8, cutmix=1.0)
    root = str(planted(tmp_path / "pets"))
    path = show_batch(root, tmp_path / "new" / "batch.png", augment=augment, img_size=16, images=3, versions=2)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
        assert np.asarray(picture.convert("RGB")).std() > 20
    again = show_batch(root, tmp_path / "again.png", augment=augment, img_size=16, images=3, versions=2)
    assert again.read_bytes() == path.read_bytes()
    other = show_batch(
        root, tmp_path / "o.png", augment=replace(augment, flip=1.0), img_size=16, images=3, versions=2, seed=1
    )
    assert other.read_bytes() != path.read_bytes()


def test_show_batch_of_grey_and_of_an_unwritable_place(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    names = ["猫", "a name $ of very many words indeed"]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1] * 2, class_names=names)
    show_batch(str(tmp_path / "a.npz"), tmp_path / "a.png", augment=Augment(), img_size=8, versions=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        show_batch(str(tmp_path / "a.npz"), tmp_path / "file" / "a.png", augment=Augment(), img_size=8, versions=1)


class Deadly(Split):
    """Images of which one ends the process that reads it."""

    labels = [0] * 70

    def read(self, i: int) -> torch.Tensor:
        if i == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    def name(self, i: int) -> str:
        return str(i)


def test_a_killed_process_is_one_sentence() -> None:
    reading = (lambda: _look("train", Deadly(), 1, False), lambda: list(_read("train", Deadly(), 0, 1, False)))
    for work in reading:
        with pytest.raises(UserError, match=r"^one of 1 processes that read the images was killed") as error:
            work()
        assert "\n" not in str(error.value)
