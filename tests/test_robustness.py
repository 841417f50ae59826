"""robustness(): each number against another way to it, mCE in closed form, and the verb."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import vitrail
from PIL import Image

from vitrail import cli, commands, comparison
from vitrail.commands import robustness as verb
from vitrail.comparison import corruptions
from vitrail.comparison.corruptions import CORRUPTIONS, corrupt
from vitrail.comparison.robustness import ALEXNET, ALEXNET_ERRORS, picture, relative_to, robustness
from vitrail.comparison.robustness_conditions import Versions, coarser, corrupted, input_side
from vitrail.data.limit import limited
from vitrail.data.sources import Source, open_source
from vitrail.errors import UserError
from vitrail.models import create_model
from vitrail.recipe import Data, Recipe
from vitrail.run import Run, load, preprocessing
from vitrail.training.evaluate import evaluate
from vitrail.training.features import source_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned something: at chance, every corruption would look alike."""
    out = tmp_path_factory.mktemp("robustness") / "run"
    small = ("--data.limit", 300, "--data.batch-size", 30, "--data.workers", 0)
    said = vitrail("train", "--out", out, "--schedule.epochs", 16, "--schedule.warmup-epochs", 1, *small)
    assert said.code == 0, said.err
    return out


def scored_images(run: Path) -> Source:
    """The 60 images that `found` is about."""
    return limited(source_of(load(run), None), 60, 0)


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    return robustness(run, limit=60, corruptions=("brightness", "gaussian_noise", "contrast"), severities=(1, 5))


def untrained(name: str, source: object, side: int, classes: int = 10, in_chans: int = 3) -> Run:
    """A model with random weights, as a run on a source."""
    torch.manual_seed(0)
    mean = (0.5,) * in_chans
    data = Data(source=str(source), img_size=side, in_chans=in_chans, mean=mean, std=mean, workers=0)
    model = create_model(name, num_classes=classes, img_size=side, in_chans=in_chans).eval()
    names = open_source(str(source)).classes
    return Run(model, Recipe(model=name, data=data), names, "random weights", None)


# ---------------------------------------------------------------------- against another way


def test_clean_is_what_eval_says(run: Path, found: dict[str, Any]) -> None:
    scored = evaluate(run, source=scored_images(run))
    assert scored["top1"] > 0.6
    assert (found["n"], found["split"], found["classes"]) == (scored["n"], "test", 10)
    assert found["clean"]["top1"] == pytest.approx(scored["top1"])
    assert found["clean"]["calibration_error"] == pytest.approx(scored["calibration_error"], abs=1e-6)
    low, high = found["clean"]["interval"]
    assert low < found["clean"]["top1"] < high
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_errors_of_a_corruption_without_chance(run: Path, found: dict[str, Any], name: str) -> None:
    opened = load(run)
    data = opened.recipe.data
    split = scored_images(run).splits["test"]
    prepare = preprocessing(data)
    for severity, error in zip((1, 5), row_of(found, name)["errors"], strict=True):
        wrong = 0
        for i in range(len(split)):
            grey = split.read(i).repeat(3, 1, 1).permute(1, 2, 0).numpy()
            worse = torch.from_numpy(corrupt(grey, name, severity)).permute(2, 0, 1)[:1]  # grey stays grey
            with torch.no_grad():
                said = opened.model.cpu()(prepare(worse)[None]).argmax()
            wrong += int(said) != split.labels[i]
        assert error == pytest.approx(wrong / len(split))


def row_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["corruptions"]["rows"] if row["corruption"] == name)


def test_tables_add_up(found: dict[str, Any]) -> None:
    table = found["corruptions"]
    assert [row["group"] for row in table["rows"]] == ["weather", "noise", "digital"]
    assert table["severities"] == [1, 5]
    for row in table["rows"]:
        assert row["mean"] == pytest.approx(np.mean(row["errors"]))
        assert table["groups"][row["group"]] == row["mean"]
        assert len(row["calibration_errors"]) == 2
    assert table["mean_error"] == pytest.approx(np.mean([row["errors"] for row in table["rows"]]))
    assert table["mce"] is None
    assert row_of(found, "contrast")["errors"][1] > 1 - found["clean"]["top1"], "a twentieth of the contrast"


def test_nothing_done_is_clean(found: dict[str, Any]) -> None:
    clean = found["clean"]["top1"]
    occlusion = found["occlusion"]
    assert occlusion["random_black"][0] == occlusion["random_mean_colour"][0] == {"dropped": 0.0, "top1": clean}
    assert found["shuffle"][0] == {"grid": 1, "top1": clean}
    assert [row["grid"] for row in found["shuffle"]] == [1, 2, 4, 8], "14 does not divide 8"
    assert [row["dropped"] for row in occlusion["random_black"]] == [k / 10 for k in range(10)]


def test_salient_cells_and_the_rest_are_all(found: dict[str, Any]) -> None:
    occlusion = found["occlusion"]
    assert (occlusion["cells"], occlusion["map"]) == (4, "rollout")
    for one, other in zip(occlusion["salient"], occlusion["non_salient"], strict=True):
        assert one["mass"] == other["mass"]
        assert one["dropped"] + other["dropped"] == pytest.approx(1)
        assert one["dropped"] <= one["mass"] + 1 / 16, "the largest cells hold more than their share"


def test_attacks_work(found: dict[str, Any]) -> None:
    rows = {(row["attack"], row["eps_255"]): row["top1"] for row in found["attacks"]}
    assert list(rows) == [(name, eps) for name in ("fgsm", "pgd") for eps in (1, 2, 4, 8)]
    assert rows["pgd", 8] < found["clean"]["top1"] - 0.02
    assert rows["pgd", 8] <= rows["fgsm", 8]
    for name in ("fgsm", "pgd"):
        assert rows[name, 8] <= rows[name, 1]


def test_other_input_sizes(found: dict[str, Any]) -> None:
    taken = found["resolution"]["input"]
    assert [(row["factor"], row["side"], row["refused"]) for row in taken] == [
        (0.75, 6, None), (1.25, 10, None), (1.5, 12, None),
    ]  # fmt: skip
    assert [input_side(224, factor) for factor in (0.75, 1.25, 1.5)] == [160, 288, 336]
    mixer = untrained("mixer_s32_224", "digits", 32)
    result = robustness(mixer, limit=4, corruptions=(), attacks=())
    assert [row["top1"] for row in result["resolution"]["input"]] == [None] * 3
    assert "this model takes images of 32x32" in result["resolution"]["input"][0]["refused"]
    assert result["occlusion"]["map"] == "gradcam"
    assert result["corruptions"]["rows"] == []
    assert result["corruptions"]["mean_error"] is None


def test_coarser_loses_detail_and_keeps_flat_colour() -> None:
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(coarser(flat, 0.25), flat)
    checks = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    assert (coarser(checks, 0.25) - 0.5).abs().max() < 0.1
    assert coarser(checks, 0.5).shape == checks.shape


# ---------------------------------------------------------------------- no change, and no chance


def test_a_corruption_that_does_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "corrupt", lambda image, _name, _severity, **_seed: image)
    result = robustness(run, limit=20, corruptions=("fog", "snow"), attacks=())
    clean = result["clean"]
    for row in result["corruptions"]["rows"]:
        assert row["errors"] == pytest.approx([1 - clean["top1"]] * 5)
        assert row["calibration_errors"] == pytest.approx([clean["calibration_error"]] * 5)


def test_severity_0_and_the_order_of_what_is_asked(run: Path, found: dict[str, Any]) -> None:
    result = robustness(
        run, corruptions=("contrast", "brightness"), severities=(5, 0), attacks=(), limit=60, batch_size=7
    )
    assert result["corruptions"]["severities"] == [0, 5]
    assert row_of(result, "contrast")["errors"][0] == 1 - result["clean"]["top1"]
    for name in ("contrast", "brightness"):
        assert row_of(result, name)["errors"][1] == row_of(found, name)["errors"][1]


def test_every_time_the_same(run: Path) -> None:
    opened = load(run)
    several = opened._replace(recipe=replace(opened.recipe, data=replace(opened.recipe.data, workers=2)))
    asked: dict[str, Any] = {"limit": 12, "corruptions": ("gaussian_noise",), "severities": (3,)}
    one, other = robustness(run, **asked), robustness(several, **asked)
    assert one == other
    assert robustness(run, seed=1, **asked)["seed"] == 1


def test_each_image_has_noise_of_its_own_and_keeps_it() -> None:
    data = Data(img_size=8, in_chans=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    versions = Versions(data, [("gaussian_noise", 1), ("gaussian_noise", 5), ("brightness", 3)])
    torch.manual_seed(1)
    one, other = versions(image), versions(image)
    assert one.shape == (4, 3, 8, 8)
    assert torch.equal(one[0], image), "the square itself, before normalisation"
    assert torch.equal(one[3], other[3])
    assert not torch.equal(one[1], other[1])
    torch.manual_seed(1)
    assert torch.equal(versions(image), one)


def test_grey_is_corrupted_as_colour() -> None:
    grey = torch.full((1, 8, 8), 100, dtype=torch.uint8)
    brighter = corrupted(grey, "brightness", 5, 0)
    colour = corrupt(grey.repeat(3, 1, 1).permute(1, 2, 0).numpy(), "brightness", 5)
    assert torch.equal(brighter, torch.from_numpy(colour[..., 0])[None])
    assert torch.equal(corrupted(grey, "brightness", 0, 0), grey)


# ---------------------------------------------------------------------- mCE


def result_of(errors: dict[str, list[float]], clean: float) -> dict[str, Any]:
    rows = [{"corruption": name, "errors": values} for name, values in errors.items()]
    return {"run": "it", "clean": {"top1": 1 - clean}, "corruptions": {"rows": rows}}


def test_mce_in_closed_form() -> None:
    one = result_of({"fog": [0.2, 0.4], "snow": [0.5, 0.5]}, clean=0.1)
    other = result_of({"fog": [0.4, 0.8], "snow": [0.2, 0.6], "frost": [1.0, 1.0]}, clean=0.2)
    found = relative_to(other, one)
    assert [row["ce"] for row in found["rows"]] == pytest.approx([0.5, 1.25])
    assert [row["relative_ce"] for row in found["rows"]] == pytest.approx([0.4 / 0.8, 0.8 / 0.4])
    assert found["mce"] == pytest.approx(100 * (0.5 + 1.25) / 2)
    assert found["relative_mce"] == pytest.approx(125)


def test_a_baseline_without_errors_gives_no_ce() -> None:
    one = result_of({"fog": [0.2, 0.4], "snow": [0.5, 0.5]}, clean=0.1)
    found = relative_to(result_of({"fog": [0.0, 0.0], "snow": [0.5, 0.5]}, clean=0.5), one)
    assert [row["ce"] for row in found["rows"]] == [None, 1.0]
    assert [row["relative_ce"] for row in found["rows"]] == [None, None]
    assert (found["mce"], found["relative_mce"]) == (100, None)


def test_itself_is_100(run: Path, found: dict[str, Any]) -> None:
    assert relative_to(found, found)["mce"] == 100
    asked: dict[str, Any] = {
        "corruptions": ("contrast", "gaussian_noise"), "severities": (5,), "attacks": (), "limit": 60,
    }  # fmt: skip
    by_name = robustness(run, baseline=run, **asked)["corruptions"]
    assert (by_name["mce"], by_name["relative_mce"], by_name["baseline"]) == (100, 100, str(run))
    before = robustness(run, **asked)
    assert robustness(run, baseline=before, **asked)["corruptions"] == by_name


def test_a_baseline_of_other_images_is_refused(run: Path, found: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"corruptions": ("contrast",), "severities": (5,), "attacks": (), "limit": 4}
    with pytest.raises(UserError, match="measured on n 60"):
        robustness(run, baseline=found, **asked)
    with pytest.raises(UserError, match="other corruptions"):
        robustness(run, baseline={**found, "n": 4}, **asked)
    with pytest.raises(UserError, match="ImageNet's 1000 classes"):
        robustness(run, baseline=ALEXNET, **asked)


def test_alexnet_itself_is_100() -> None:
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)
    rows = {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}
    from vitrail.comparison.robustness import ALEXNET_CLEAN

    found = relative_to(result_of(rows, ALEXNET_CLEAN), result_of(rows, ALEXNET_CLEAN))
    assert (found["mce"], found["relative_mce"]) == (pytest.approx(100), pytest.approx(100))


# ---------------------------------------------------------------------- images and mistakes


def test_photographs_in_colour_under_all_corruptions(shared_data: Path) -> None:
    vit = untrained("vit_nano_patch8_32", shared_data / "cifar10_subset.npz", 32)
    result = robustness(vit, limit=20, severities=(3,), attacks=())
    assert result["n"] == 20
    assert [row["corruption"] for row in result["corruptions"]["rows"]] == list(CORRUPTIONS)
    assert set(result["corruptions"]["groups"]) == {"noise", "blur", "weather", "digital"}
    assert not vit.model.training
    assert all(parameter.requires_grad for parameter in vit.model.parameters())


def test_a_damaged_image_is_named_and_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for k in range(10):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    for file in tmp_path.rglob("[0-4].png"):
        file.write_bytes(file.read_bytes()[:60])
    model = untrained("vit_pico_patch2_8", tmp_path, 8, classes=2)
    result = robustness(model, corruptions=("fog",), severities=(1,), attacks=())
    assert result["n"] + len(result["damaged"]) == 4
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="none of the 4 images held out can be read"):
        robustness(model, corruptions=(), attacks=())


def test_what_a_model_cannot_give_is_said(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 4), dtype=np.uint8)
    labels = np.arange(12) % 3
    np.savez(tmp_path / "four.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    result = robustness(untrained("vit_pico_patch2_8", tmp_path / "four.npz", 8, classes=3, in_chans=4))
    assert result["notes"] == ["no corruptions: they are defined for grey and RGB images, not 4 channels"]
    assert result["corruptions"]["rows"] == []
    assert len(result["attacks"]) == 8
    assert picture(result).startswith(b"\x89PNG")


def test_mistakes(run: Path) -> None:
    with pytest.raises(UserError, match="name the DATA"):
        robustness("vit_pico_patch2_8")
    with pytest.raises(UserError, match="no corruption 'fogg'; did you mean 'fog'"):
        robustness(run, corruptions=("fogg",))
    with pytest.raises(UserError, match="severities are"):
        robustness(run, severities=(6,))
    with pytest.raises(UserError, match="no attack 'pdg'; did you mean 'pgd'"):
        robustness(run, attacks=("pdg",))
    with pytest.raises(UserError, match="limit is 0"):
        robustness(run, limit=0)
    opened = load(run)
    with pytest.raises(UserError, match="several labels an image"):
        robustness(opened._replace(recipe=replace(opened.recipe, task="multilabel")))


# ---------------------------------------------------------------------- picture and verb


def test_picture(found: dict[str, Any]) -> None:
    one, two = (Image.open(io.BytesIO(picture(what))) for what in (found, [found, found]))
    assert one.width == two.width
    assert two.height > one.height, "a table for each"
    reds = np.asarray(one.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((reds[:, 0] - reds[:, 2]) > 60).mean() > 0.005, "the table is coloured"


@pytest.fixture
def registered() -> Iterator[None]:
    with (
        mock.patch.dict(commands.COMMANDS, {"robustness": verb.robustness}),
        mock.patch.dict(cli.VERBS, {"robustness": "RUN [DATA]"}),
    ):
        yield


@pytest.mark.usefixtures("registered")
def test_command(run: Path, tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = vitrail("robustness", run, "--limit", 2, "--baseline", run, "--out", tmp_path / "new" / "out", "--json")
    assert said.code == 0, said.err
    assert said.json()["n"] == 2
    assert json.loads((tmp_path / "new" / "out" / "robustness.json").read_text()) == said.json()
    assert (tmp_path / "new" / "out" / "robustness.png").read_bytes() == picture(said.json())
    monkeypatch.setattr(comparison.robustness, "robustness", lambda *_words, **_more: found)
    shown = vitrail("robustness", run)
    assert f"{found['clean']['top1']:.2%} of 60 test images of digits right as they are" in shown.out
    assert "brightness" in shown.out
    assert f"{row_of(found, 'contrast')['errors'][1]:.1%}" in shown.out
    assert vitrail("robustness", run, "--out", run / "recipe.json").code == 1
