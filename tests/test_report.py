"""Cost and report: counts against hand calculation; a page that is whole, safe and offline whatever the run holds."""

from __future__ import annotations

import html.parser
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitrail.comparison import charts, cost
from vitrail.comparison.checkup import checkup
from vitrail.comparison.figures import wilson
from vitrail.comparison.report import write_report
from vitrail.errors import UserError
from vitrail.layers.attention import attend
from vitrail.models import create_model
from vitrail.recipe import Data, Recipe, Schedule, to_json

EVIL = "<img src=x onerror=alert(1)>"
CLASSES = [EVIL, "猫 & dog", "plain"]
PER_CLASS = 5


# ------------------------------------------------------------------ cost


def test_parameters_count_shared_ones_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, bias=False))
    model.add_module("again", model[0])
    assert cost.parameters(model) == 3 * 4 + 4 + 4 * 3


def test_flops_of_convolution_and_matrix_are_their_products():
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    assert cost.flops(model, 8, in_chans=2) == 5 * 2 * 9 * 8 * 8 + 5 * 8 * 8 * 7


def test_flops_include_fused_attention():
    class Attends(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.flatten(2).transpose(1, 2)[:, None]  # (B, 1, N, d)
            return attend(tokens, tokens, tokens, site=self)

    assert cost.flops(Attends(), 4, in_chans=6) == 2 * 16 * 16 * 6


def test_flops_leave_the_model_where_it_was():
    model = create_model("vit_pico_patch2_8").train()
    cost.flops(model, 8)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_images_per_second_counts_images_and_keeps_the_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Dropout(0.5)).train()
    calls: list[int] = []
    model.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    speed = cost.images_per_second(model, (4, 3, 2, 2), seconds=0.05)
    assert set(calls) == {4}
    assert speed == pytest.approx(4 * (len(calls) - 2) / 0.05, rel=0.5)
    assert model.training


# ------------------------------------------------------------------ numbers and charts


def test_wilson_interval():
    low, high = wilson(0.9, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert wilson(1.0, 10)[1] == 1.0
    assert wilson(0.0, 10)[0] == 0.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.7, 12.2), (0.00012, 0.00019), (5, 5), (1e5, 3e6)])
def test_ticks_are_round_and_enclose(low, high):
    marks = charts.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert len(marks) <= 8
    steps = {round((b - a) / 10 ** math.floor(math.log10(b - a) + 1e-9), 6) for a, b in itertools.pairwise(marks)}
    assert steps <= {1.0, 2.0, 5.0}


def test_a_chart_leaves_out_what_is_not_finite():
    assert charts.line_chart("loss", [charts.Curve("train", "red", [(1, math.nan)])]) == ""
    drawn = charts.line_chart("loss", [charts.Curve("train", "red", [(1, math.inf), (2, 0.5), (3, 0.25)])])
    assert drawn.count("<circle") == 3  # two points and the legend's
    assert "nan" not in drawn
    assert "inf" not in drawn


# ------------------------------------------------------------------ the page


class Reader(html.parser.HTMLParser):
    """The tags, attributes and text of a page; fails on a tag that is not closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "action", "onerror")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def photographs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{EVIL[:9]} {number}.png")


def final_scores() -> dict[str, object]:
    confusion = [[4, 1, 0], [2, 3, 0], [0, 0, 5]]
    mistakes = [
        {"file": f"{EVIL}.png", "index": index, "true": CLASSES[true], "predicted": CLASSES[said], "probability": 0.9}
        for index, true, said in [(0, 0, 1), (5, 1, 0), (6, 1, 0)]
    ]
    scores = [{"class": name, "precision": 0.5, "recall": 0.25, "f1": 0.4, "n": 5} for name in CLASSES]
    return {
        "run": "run",
        "data": "photos",
        "split": "test",
        "n": 15,
        "damaged": [],
        "top1": 0.8,
        "top5": 1.0,
        "loss": 0.61,
        "macro_f1": 0.4,
        "classes": CLASSES,
        "per_class": scores,
        "confusion": confusion,
        "mistakes": mistakes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a folder of small photographs, its names as hostile as a file system allows."""
    home = tmp_path_factory.mktemp("report")
    photographs(home / "photos")
    folder = home / "run"
    folder.mkdir()
    data = Data(source=str(home / "photos"), img_size=8, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    recipe = Recipe(model="vit_pico_patch2_8", data=data, schedule=Schedule(epochs=2), label_smoothing=0.1)
    torch.manual_seed(0)
    save_file(create_model(recipe.model, num_classes=3).state_dict(), folder / "model.safetensors")
    (folder / "recipe.json").write_text(to_json(recipe))
    (folder / "classes.json").write_text(json.dumps(sorted(CLASSES)))
    (folder / "final.json").write_text(json.dumps(final_scores()))
    (folder / "damaged.json").write_text(json.dumps([f"train/{EVIL}.png"]))
    epoch = {"step": 4, "lr": 1e-3, "train_loss": 1.1, "split": "test", "val_loss": 1.0, "images_per_s": 321.0}
    lines = [{"epoch": n, "val_top1": 0.4 * n, "damaged": 1, **epoch} for n in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return write_report(finished).read_text(encoding="utf-8")


def test_the_page_is_whole(page):
    read = Reader(page)
    for words in ["80.00%", "95% interval 54.8% to 93.0%", "12 of 15", "What it costs", "321", "vitrail export"]:
        assert words in read.words
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[:4] == ["What was trained", "Training", "What is taken for what", "Class by class"]
    assert titles[4] == "Most confident mistakes"
    assert read.tags.count("svg") == 4  # three charts, one matrix
    assert len(page) < 10e6


def test_mistakes_are_shown_with_their_maps(page):
    mistakes = re.search("Most confident mistakes.*?</section>", page, re.DOTALL)
    assert mistakes
    pictures = re.findall('<img alt="" src="data:image/png;base64,([^"]+)"', mistakes.group())
    assert len(pictures) == len(set(pictures)) == 6  # three mistakes, each with its overlay


def test_names_are_escaped(page):
    read = Reader(page)
    assert EVIL in read.words
    assert "<img src=x" not in page
    assert "script" not in read.tags


def test_nothing_comes_from_elsewhere(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]+", "", page))
    assert all(link.startswith("data:image/png;base64,") for link in Reader(page).links)


def test_damaged_files_are_named(page):
    assert f"train/{EVIL}.png" in Reader(page).words


def test_what_doctor_found_is_told(page):
    words = Reader(page).words
    assert "all of 30 images" in words
    assert "30 PNG" in words
    assert "What doctor found" in words


def test_every_finding_of_doctor_has_its_line():
    size = {"min": 3, "median": 4, "max": 9}
    one = {"split": "train", "file": EVIL}

    def some(*listed):
        return {"count": len(listed), "listed": list(listed)}

    found = {
        "splits": {"train": {"images": 9, "readable": 8, "per_class": {"a": 9}}},
        "imbalance": 2.5,
        "problems": ["too few"],
        "damaged": [{**one, "reason": "truncated"}] * 20,
        "formats": {"PNG": 8},
        "modes": {"RGB": 8},
        "odd_modes": some({**one, "mode": "CMYK"}),
        "misnamed": some({**one, "content": "JPEG"}),
        "turned": some(one),
        "sizes": {"width": size, "height": size},
        "small": some({**one, "size": [3, 4]}),
        "long": some(),
        "duplicates": {**some([one, one, one]), "across_splits": 1, "unlike_labels": 1},
    }
    text = checkup(found)
    words = Reader(text).words
    for said in ["8 of 9 images", "3 to 9 (median 4) wide", "2.5 times", "makes the score too good", "3 x 4", "CMYK"]:
        assert said in words
    assert "and 8 more" in words
    assert "Very long" not in words
    assert "<img" not in text


def test_data_that_are_gone_are_said(finished, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    recipe = json.loads((moved / "recipe.json").read_text())
    recipe["data"]["source"] = str(tmp_path / "gone")
    (moved / "recipe.json").write_text(json.dumps(recipe))
    read = Reader(write_report(moved).read_text(encoding="utf-8"))
    assert "could not be opened again" in read.words
    assert f"{EVIL}.png: {EVIL}, called 猫 & dog (90.0%)" in read.words
    assert not read.links


def test_a_photograph_that_is_gone_costs_only_itself(finished, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    shutil.copytree(finished.parent / "photos", tmp_path / "photos")
    recipe = json.loads((moved / "recipe.json").read_text())
    recipe["data"]["source"] = str(tmp_path / "photos")
    (moved / "recipe.json").write_text(json.dumps(recipe))
    first = sorted((tmp_path / "photos" / "test" / sorted(CLASSES)[0]).iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    whole, part = ((folder / "report.html") for folder in (finished, moved))
    write_report(finished)
    write_report(moved)
    shown = [re.search("Most confident mistakes.*?</section>", file.read_text("utf-8"), re.S) for file in (whole, part)]
    assert [match.group().count("<figure>") for match in shown if match] == [3, 2]


def test_an_unfinished_run_says_so(finished, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    for name in ("final.json", "log.jsonl", "damaged.json"):
        (moved / name).unlink()
    words = Reader(write_report(moved).read_text(encoding="utf-8")).words
    assert "it was not finished" in words
    assert "--resume" in words


def test_many_classes_are_listed_not_drawn(finished, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    final = final_scores()
    names = [f"class {n}" for n in range(40)]
    confusion = np.eye(40, dtype=int) * 9
    confusion[3, 7] = 5
    final |= {"classes": names, "confusion": confusion.tolist(), "mistakes": []}
    (moved / "final.json").write_text(json.dumps(final))
    page = write_report(moved).read_text(encoding="utf-8")
    assert "<td>class 3</td><td>class 7</td><td>5 of 14</td>" in page
    assert 'aria-label="confusion matrix"' not in page


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
