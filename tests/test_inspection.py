"""inspect(): numbers against the analyses themselves, what is missing is said, the page holds nothing foreign."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from command_line import tiny_run
from PIL import Image

from vitrail.commands import inspecting
from vitrail.comparison import inspection
from vitrail.comparison.inspection import ANALYSES, inspect, plain
from vitrail.comparison.inspection_page import DRAWN
from vitrail.comparison.inspection_words import ABOUT
from vitrail.comparison.pictures_of_layers import GAP, Panel, Trace, board, bowls, traces
from vitrail.comparison.subjects import Cast, Missing, cast
from vitrail.data.sources import open_source
from vitrail.errors import UserError
from vitrail.interpretability.positions import position_similarity
from vitrail.models import create_model
from vitrail.recipe import Data, Recipe
from vitrail.run import Run, load, preprocessing
from vitrail.training.evaluate import evaluate

HOSTILE = ['<script>alert("a")</script>', "b & <b>", "c'\"$x_1$ 猫"]


def untrained(name: str, source: Path | str, side: int) -> Run:
    """A model with random weights, as a run on a source."""
    torch.manual_seed(0)
    classes = open_source(str(source)).classes
    model = create_model(name, num_classes=len(classes), img_size=side, in_chans=3).eval()
    data = Data(source=str(source), img_size=side, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, workers=0)
    return Run(model, Recipe(model=name, data=data), classes, "random weights", None)


def answers(page: Path) -> dict[str, Any]:
    """The JSON beside a page, in which nothing is NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def missing(found: dict[str, Any], model: int = 0) -> dict[str, str]:
    """The sentences in place of results, by part."""
    return {
        part: value["not_available"]
        for parts in found["analyses"].values()
        for part, value in parts[model].items()
        if isinstance(value, dict) and "not_available" in value
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("inspected") / "run")


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return inspect(run, out=run.parent / "page", images=60)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with names that are no HTML."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (15, 32, 32, 3), dtype=np.uint8), np.arange(15) % 3
    file = tmp_path_factory.mktemp("hostile") / "three.npz"
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, class_names=np.array(HOSTILE))
    return file


@pytest.fixture(scope="module")
def pair(run: Path, hostile: Path) -> Path:
    """A convolutional network beside a ViT with other classes, on the former's images."""
    return inspect(untrained("resnet20", hostile, 32), run, out=hostile.parent / "pair", images=12)


# ---------------------------------------------------------------------- one ViT


def test_every_analysis_stands_on_the_page_and_in_the_numbers(page: Path) -> None:
    assert list(ANALYSES) == list(ABOUT) == list(DRAWN)
    text, found = page.read_text(encoding="utf-8"), answers(page)
    assert list(found["analyses"]) == list(ANALYSES)
    for name, about in ABOUT.items():
        assert f'id="{name}"' in text
        assert f"<h2>{about.title}</h2>" in text
        assert re.search(r"\(\d{4}\)", about.papers), "every section says where its expectation comes from"
    assert set(missing(found)) == {"bias"}
    assert "relative_bias is not available for vit_pico because" in text


def test_numbers_are_those_of_the_analyses(run: Path, page: Path) -> None:
    found = answers(page)
    analyses = {name: parts[0] for name, parts in found["analyses"].items()}
    model = load(run).model
    positions = position_similarity(model)
    assert analyses["positions"]["similarity"]["correlation"] == pytest.approx(positions.correlation, rel=1e-4)
    assert np.allclose(analyses["positions"]["similarity"]["similarity"], positions.similarity, rtol=1e-4)
    values = np.array(analyses["cka"]["cka"]["values"])
    assert np.allclose(values, values.T)
    assert np.allclose(values.diagonal(), 1)
    assert np.isclose(np.sum(analyses["filters"]["filters"]["shares"]), 1, atol=1e-3)
    landscape = analyses["landscape"]["landscape"]
    losses = np.array(landscape["losses"])
    scored = evaluate(run)
    assert (found["images"], found["split"]) == (scored["n"], "test") == (60, "test")
    assert found["models"][0]["right"] == pytest.approx(scored["top1"], rel=1e-4)
    assert landscape["images"] == 60, "all of them: the model is small"
    assert losses[3, 3] == pytest.approx(scored["loss"], rel=1e-3)
    assert len(analyses["maps"]["rollout"]) == 4
    assert "overlay" not in analyses["maps"]["rollout"][0], "pictures are on the page"


def test_the_page_is_small_whole_and_from_here(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text) < 10e6
    assert not re.search(r"https?://|<script|<link|url\(", text)
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([\w+/=]+)", text)]
    assert len(pictures) > 25
    for picture in pictures:
        assert len(picture) <= 150_000
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).std() > 0, "nothing is drawn"


def test_the_same_again(run: Path, page: Path, tmp_path: Path) -> None:
    some = ["cka", "receptive", "features"]
    again = answers(inspect(run, out=tmp_path, images=60, only=some))
    assert list(again["analyses"]) == ["features", "receptive", "cka"], "in the order of the page"
    assert again["analyses"] == {name: answers(page)["analyses"][name] for name in again["analyses"]}
    text = (tmp_path / "inspection.html").read_text(encoding="utf-8")
    assert text.count("<section>") == 3


# ---------------------------------------------------------------------- two, with names that are no HTML


def test_a_cnn_beside_a_vit(pair: Path, run: Path) -> None:
    found = answers(pair)
    assert [one["model"] for one in found["models"]] == ["resnet20", "vit_pico_patch2_8"]
    assert found["images"] == 12
    assert set(missing(found, 0)) == {"attention", "similarity", "bias", "rollout", "relevance"}
    assert set(missing(found, 1)) == {"bias", "landscape", "curvature"}
    assert "has 3 classes and the model 10" in missing(found, 1)["landscape"]
    assert "has 3 classes and the model 10" in found["models"][1]["right"]
    between = found["between"]["cka"]
    assert np.shape(between["values"]) == (len(between["rows"]), len(between["columns"]))
    assert between["rows"] == found["analyses"]["cka"][0]["cka"]["rows"]
    assert between["columns"] == found["analyses"]["cka"][1]["cka"]["rows"]
    text = pair.read_text(encoding="utf-8")
    assert "resnet20: distance is not available for resnet_cifar because" in text
    assert run.name in found["models"][1]["run"]


def test_names_are_text(pair: Path) -> None:
    text = pair.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b> " not in text
    assert "&lt;script&gt;alert(&quot;a&quot;)&lt;/script&gt;" in text


def test_two_models_see_the_same_images(run: Path, hostile: Path) -> None:
    asked = cast([untrained("resnet20", hostile, 32), load(run)], None, 8)
    one, other = asked.subjects
    assert one.split is other.split
    assert (one.total, asked.split, asked.damaged) == (8, "test", [])
    assert one.split is not None
    image = one.split.read(3)
    for subject, size in ((one, 3), (other, 8)):
        batches = list(subject.batches(7, size))
        assert sum(map(len, batches)) == 7
        seen = torch.cat(batches)[3].cpu()
        assert torch.equal(seen, preprocessing(subject.run.recipe.data)(image))


def test_batches_that_are_compared_are_alike_and_hold_nearly_all(run: Path) -> None:
    (subject,) = cast([load(run)], None, 4, looking=False).subjects
    for total in range(4, 900, 7):
        of = subject._replace(split=[0] * total)  # type: ignore[arg-type]
        size = of.whole()
        assert 4 <= size <= 1.5 * 128
        assert total - total // size * size < 8, "few are left over"
        wide = of._replace(widest=2**40)
        assert 4 <= wide.whole() <= 24, "the widest maps come 16 at once"


# ---------------------------------------------------------------------- without images, with damaged ones


def test_a_name_without_data(tmp_path: Path) -> None:
    page = inspect("vit_pico_patch2_8", out=tmp_path, only=["positions", "filters", "cka", "maps"])
    found = answers(page)
    assert (found["data"], found["images"]) == ("", 0)
    assert missing(found).pop("cka") == "needs images: name DATA"
    assert found["analyses"]["filters"][0]["filters"]["shares"]
    assert page.read_text(encoding="utf-8").count("needs images: name DATA") == 2, "once a section"


def test_a_name_with_data_of_other_classes(hostile: Path, tmp_path: Path) -> None:
    page = inspect("vit_pico_patch2_8", data=str(hostile), out=tmp_path, images=8, only=["distance", "landscape"])
    found = answers(page)
    assert set(missing(found)) == {"landscape", "curvature"}
    assert "three has 3 classes and the model 1000" in found["models"][0]["right"]
    assert found["analyses"]["distance"][0]["attention"]["images"] == 8


def test_damaged_images_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, kind in (("train", "x"), ("train", "y"), ("test", "x"), ("test", "y")):
        folder = tmp_path / "data" / split / kind
        folder.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{kind}<{k}>.png")
    torn = tmp_path / "data" / "test" / "x" / "x<1>.png"
    torn.write_bytes(torn.read_bytes()[:60])
    page = inspect(
        untrained("vit_pico_patch2_8", tmp_path / "data", 8), out=tmp_path / "out", only=["residual", "maps"]
    )
    found = answers(page)
    assert (found["images"], len(found["damaged"])) == (7, 1)
    assert found["analyses"]["residual"][0]["ratios"]["images"] == 7
    text = page.read_text(encoding="utf-8")
    assert "1 could not be read" in text
    assert "x&lt;1&gt;.png" in text


# ---------------------------------------------------------------------- mistakes, and the verb


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no analysis 'distanse'; did you mean 'distance'"):
        inspect(run, out=tmp_path, only=["distanse"])
    with pytest.raises(UserError, match="images is 3; give 4 or more"):
        inspect(run, out=tmp_path, images=3)
    with pytest.raises(UserError, match="neither a run folder nor a model"):
        inspect(run, "vit_pico_patch2_9", out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --out"):
        inspect(run, out=tmp_path / "file")


def test_errors_of_ours_are_not_hidden(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_subject: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(inspection.ANALYSES, "filters", inspection.Analysis({"filters": broken}, images=False))
    with pytest.raises(ZeroDivisionError):
        inspect(run, out=tmp_path, only=["filters"])


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), str(run), "digits", "--out", str(tmp_path), "--images", "8", "--only", "cka,positions", "--json"]
    tyro.cli(inspecting.inspect, args=words)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["page"] == str(tmp_path / "inspection.html")
    assert list(found["analyses"]) == ["positions", "cka"]
    assert np.allclose(found["between"]["cka"]["values"], found["analyses"]["cka"][0]["cka"]["values"], atol=1e-4)
    assert [one["label"] for one in found["models"]] == [f"1: {run.name}", f"2: {run.name}"]
    assert "cka" in said.err


def test_words_are_told_apart(run: Path) -> None:
    apart = inspecting._told_apart
    assert apart(()) == (None, None)
    assert apart(("digits",)) == (None, "digits")
    assert apart(("hf:some/name",)) == (None, "hf:some/name")
    assert apart((str(run),)) == (str(run), None)
    assert apart(("resnet18",)) == ("resnet18", None)
    assert apart(("./mine.py:name", "digits")) == ("./mine.py:name", "digits")
    with pytest.raises(UserError, match="RUN RUN2 DATA in this order"):
        apart(("digits", str(run)))
    with pytest.raises(UserError, match="not also more"):
        apart((str(run), "digits", "more"))


# ---------------------------------------------------------------------- numbers and pictures


def test_plain_is_json() -> None:
    value = {
        "a": np.array([[1 / 3, np.nan], [np.inf, 2.0]]),
        "b": np.float32(1e-9),
        "c": [np.int64(3), Missing("no")],
        "d": np.zeros((2, 2), np.uint8),
        "e": Cast([], "x", "test", []),
    }
    assert plain(value) == {
        "a": [[0.33333, None], [None, 2.0]],
        "b": 1e-9,
        "c": [3, {"not_available": "no"}],
        "e": {"subjects": [], "data": "x", "split": "test", "damaged": []},
    }


def test_a_board_keeps_its_pixels() -> None:
    tiles = np.arange(12.0).reshape(3, 2, 2)
    image = np.asarray(Image.open(io.BytesIO(board(tiles, columns=2, side=8))).convert("RGBA"))
    assert image.shape == (16 + GAP, 16 + GAP, 4)
    assert (image[8 : 8 + GAP, :, 3] == 0).all(), "what lies between is transparent"
    assert (image[:8, :8, 3] == 255).all()
    assert (image[8 + GAP :, 8 + GAP :, 3] == 0).all(), "there is no fourth tile"
    brightness = image[..., :3].sum(2, dtype=int)
    assert brightness[0, 0] == brightness[3, 3] < brightness[0, 4] < brightness[7, 7] < brightness[0, 8 + GAP]
    large = Image.open(io.BytesIO(board(np.ones((1, 300, 300, 3)), columns=1, side=100)))
    assert max(large.size) <= 100 + GAP


def test_pictures_of_nothing_finite_and_of_one_value() -> None:
    losses = np.full((3, 3), 2.0)
    losses[0, 0] = np.inf
    for drawn in (
        bowls("t", [("$a_1$ <b>", np.linspace(-1, 1, 3), losses)]),
        traces("t", [Panel("a", [Trace("x", [0], [1.0])]), Panel("b", [])], "across", "up", log=True),
        board(np.full((1, 2, 2), np.nan), columns=1, low=0, high=1),
    ):
        assert drawn.startswith(b"\x89PNG")
