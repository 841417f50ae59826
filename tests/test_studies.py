"""Studies: the claims are stated and compared fairly, the intervals are right, nothing is trained twice."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import vitrail
from PIL import Image
from scipy import stats
from tiny_runs import bits, stopping

from vitrail.comparison.studies import find_study, growth, list_studies, trial
from vitrail.comparison.studies.findings import (
    ArmFound,
    ContrastFound,
    Findings,
    ViewFound,
    as_json,
    markdown,
    picture,
)
from vitrail.comparison.studies.images import prepared
from vitrail.comparison.studies.study import above, minus
from vitrail.comparison.studies.verdict import (
    NOT_SEEN,
    OPPOSITE,
    SEEN,
    Interval,
    contrasted,
    interval,
    overall,
    student,
)
from vitrail.data.sources import open_source
from vitrail.errors import Interrupted, UserError
from vitrail.models import list_models
from vitrail.recipe import Recipe
from vitrail.training import loop

NAMES = list(list_studies())

BUDGET = {"schedule.epochs", "schedule.warmup_epochs"}
COMPARED = {  # what the arms of a study may differ in
    "attention_distance": set(),
    "data_hunger": {"model", "optim.lr", *BUDGET},
    "growth": {"model"},
    "inductive_bias": {"model", "optim.lr"},
    "layer_similarity": {"model", "optim.lr"},
    "occlusion": {"model", "optim.lr"},
    "pooling": {"model", "optim.lr"},
    "position_encodings": {"model"},
    "token_mixing": {"model"},
    "augmentation": {
        "augment.rand_augment",
        "augment.rand_augment_magnitude",
        "augment.mixup",
        "schedule.epochs",
        "schedule.warmup_epochs",
    },
    "distillation": {"model", "distill.kind", "distill.alpha", "distill.tau", "optim.lr"},
    "masked_pretraining": {"task", "label_smoothing", "schedule.epochs", "schedule.warmup_epochs"},
    "resolution": {
        "data.img_size",
        "augment.crop_padding",
        "optim.lr",
        "schedule.epochs",
        "schedule.warmup_epochs",
    },
    "sharpness": {"model", "optim.rho", "schedule.epochs", "schedule.warmup_epochs"},
    "small_data": {"model"},
}


def flat(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{before}{key}.")
        else:
            yield f"{before}{key}", inner


# ---------------------------------------------------------------------- the claims


@pytest.mark.parametrize("name", NAMES)
def test_a_study_states_its_claim(name: str) -> None:
    about = find_study(name).about
    assert re.findall(r"^(Claim|Figures|Compared|Seen)  +\S", about, re.MULTILINE) == [
        "Claim",
        "Figures",
        "Compared",
        "Seen",
    ]
    assert re.search(r"arXiv \d{4}\.\d{5}", about)
    assert about.splitlines()[0] == list_studies()[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_arms_differ_in_what_is_compared_alone(name: str, scale: str) -> None:
    study = find_study(name)
    size = study.scales[scale]
    assert size.name == scale
    arms = study.arms(size)
    recipes = [dict(flat(dataclasses.asdict(arm.recipe))) for arm in arms]
    differing = {key for key in recipes[0] if len({repr(recipe[key]) for recipe in recipes}) > 1}
    assert differing <= COMPARED[name]
    assert {arm.recipe.model for arm in arms} <= set(list_models())
    seen: list[str] = []
    for arm in arms:
        assert re.fullmatch(r"\w+", arm.name)
        assert {arm.starts_from, arm.teacher} <= {"", *seen}, "an arm comes after those that it needs"
        unfilled = arm.recipe.seed, arm.recipe.initial_checkpoint, arm.recipe.distill.teacher
        assert unfilled == (0, "", ""), "that is filled in for each seed"
        assert len(arm.about) <= 50, "it stands beside the picture"
        seen.append(arm.name)
    assert len(set(seen)) == len(seen)
    learned = {arm.name for arm in arms if arm.recipe.task == "classify"}
    scored = {arm.name for arm in arms if arm.name in learned and arm.trained}
    scored |= {f"{arm}/{view}" for arm in learned for view in study.views}
    assert any(one.decides for one in study.contrasts)
    for one in study.contrasts:
        assert set(one.weights) <= scored
        assert sum(one.weights.values()) == 0
        assert len(one.says) <= 50
        assert any(weight > 0 for weight in one.weights.values())


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_what_is_called_equal_compute_is(scale: str) -> None:
    """Within the rounding to whole epochs, and the few positions and first layers that differ."""
    for name in NAMES:
        study = find_study(name)
        if not any("equal compute" in one.says for one in study.contrasts):
            continue
        size = study.scales[scale]
        arms = study.arms(size)
        spent = trial.training_cost(arms, {arm.name: arm.images or size.images for arm in arms}, 10)
        for one in study.contrasts:
            if "equal compute" in one.says:
                costs = [spent[arm] for arm in one.weights]
                assert max(costs) < 1.04 * min(costs), (name, one.says)


def test_training_cost_by_hand() -> None:
    study = find_study("distillation")
    size = study.scales["cpu"]
    arms = {arm.name: arm for arm in study.arms(size)}
    one = trial.training_cost([arms["none"]], {"none": 100}, 10)["none"]
    linear = 16 * 192 * 96 + 4 * 17 * 8 * 96**2 + 96 * 10  # patches, blocks (MLP ratio 2), head
    attention = 4 * 2 * 17**2 * 96
    assert one == 3 * 100 * size.epochs * (linear + attention)
    sharp = replace(arms["none"], recipe=replace(arms["none"].recipe, optim=replace(size.recipe("x").optim, rho=0.1)))
    assert trial.training_cost([sharp], {"none": 100}, 10)["none"] == 2 * one
    after = replace(arms["none"], name="after", starts_from="none")
    both = trial.training_cost([arms["none"], after], {"none": 100, "after": 50}, 10)
    assert both["after"] == 1.5 * one
    taught = trial.training_cost([arms["teacher"], arms["none"], arms["hard"]], dict.fromkeys(arms, 100), 10)
    assert taught["hard"] == one + taught["teacher"] / 3


# ---------------------------------------------------------------------- the statistics


def test_student() -> None:
    assert [round(student(freedom), 3) for freedom in (1, 2, 4, 1000)] == [12.706, 4.303, 2.776, 1.962]


def test_intervals_equal_scipys() -> None:
    """Over the seeds Student's t; over the images the same with a thousand degrees of freedom, but 1.96."""
    random = np.random.default_rng(0)
    right = {arm: random.random((3, 1000)) < p for arm, p in (("a", 0.62), ("b", 0.5))}
    found = interval(contrasted(right, {"a": 1.0, "b": -1.0}))
    means = right["a"].mean(axis=1) - right["b"].mean(axis=1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(means.mean())
    assert (found.mean - found.by_seed, found.mean + found.by_seed) == pytest.approx(tuple(expected))
    each = (right["a"].astype(float) - right["b"]).mean(axis=0)
    assert found.by_image == pytest.approx(1.96 * stats.sem(each))
    assert found.half == max(found.by_seed, found.by_image)


def test_interval_by_hand() -> None:
    """Two seeds, four images: by seed 3/4 and 1/4; by image 1, 1/2, 1/2, 0."""
    found = interval(np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    assert found.mean == 0.5
    assert found.by_seed == pytest.approx(12.7062 * 0.25, rel=1e-4)  # s = 0.5 / sqrt(2)
    assert found.by_image == pytest.approx(1.96 * (1 / 6) ** 0.5 / 2)


def test_pairing_removes_what_is_common() -> None:
    """Images that are hard for both arms widen nothing."""
    hard = (np.random.default_rng(0).random((3, 500)) < 0.5).astype(float)
    found = interval(contrasted({"a": hard, "b": hard}, {"a": 1.0, "b": -1.0}))
    assert (found.mean, found.half, found.verdict()) == (0, 0, NOT_SEEN)


def test_one_number_a_seed_has_the_interval_of_the_seeds() -> None:
    found = interval(np.array([[1.0], [2.0], [3.0]]))
    assert (found.mean, found.by_image) == (2.0, 0.0)
    assert found.half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_a_margin_is_conceded() -> None:
    found = Interval(-0.5, 1.0, 0.2)
    assert found.verdict() == NOT_SEEN
    assert found.verdict(margin=2.0) == SEEN
    assert found.verdict(margin=1.0) == NOT_SEEN
    assert Interval(-4.0, 1.0, 0.2).verdict(margin=2.0) == OPPOSITE


def test_differences_of_differences() -> None:
    assert minus(above("a", "b"), above("c", "d")) == {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    assert minus(above("a", "b"), above("b", "c")) == {"a": 1.0, "b": -2.0, "c": 1.0}


@pytest.mark.parametrize(("between_seeds", "between_images"), [(0.0, 0.0), (0.03, 0.0), (0.0, 0.5), (0.015, 0.3)])
def test_intervals_hold_the_truth(between_seeds: float, between_images: float) -> None:
    """Of 600 studies with three seeds, whatever varies, about 95 % of the intervals hold the true difference."""
    random = np.random.default_rng(1)
    images, truth, held = 400, 0.05, 0
    for _ in range(600):
        chance = truth + between_seeds * random.standard_normal((3, 1))
        chance = chance + between_images * random.standard_normal((1, images))
        found = interval(chance + 0.4 * random.standard_normal((3, images)))
        held += found.low <= truth <= found.high
    assert held / 600 > 0.93


@pytest.mark.parametrize(
    ("mean", "by_seed", "by_image", "verdict"),
    [
        (2.0, 1.0, 1.5, SEEN),
        (2.0, 2.5, 0.1, NOT_SEEN),
        (2.0, 0.1, 2.5, NOT_SEEN),
        (-2.0, 1.9, 1.9, OPPOSITE),
        (-2.0, 2.1, 1.9, NOT_SEEN),
        (0.0, 0.0, 0.0, NOT_SEEN),
    ],
)
def test_verdict(mean: float, by_seed: float, by_image: float, verdict: str) -> None:
    assert Interval(mean, by_seed, by_image).verdict() == verdict


def test_overall_verdict() -> None:
    assert overall([SEEN]) == overall([SEEN, SEEN]) == SEEN
    assert overall([SEEN, NOT_SEEN]) == overall([SEEN, OPPOSITE]) == overall([NOT_SEEN]) == NOT_SEEN
    assert overall([OPPOSITE]) == overall([OPPOSITE, NOT_SEEN]) == OPPOSITE


# ---------------------------------------------------------------------- the findings


def made_up() -> Findings:
    rows = [("none", [50.1, 51.0, 49.2]), ("token", [54.0, 53.5, 55.1])]
    return Findings(
        "distillation",
        "Distillation: a title.\n\nClaim     of x.\n",
        {
            "data": "cifar_$10$",
            "scale": "cpu",
            "seeds": 3,
            "test_images": 2000,
            "img_size": 32,
            "batch_size": 50,
            "device": "cpu",
            "vitrail": "0",
            "torch": "2",
        },
        [
            *(ArmFound(name, f"arm {name}", "vit", 2000, 20, 1.5, "top1", scores) for name, scores in rows),
            ArmFound("pre", "pre-training", "vit", 2000, 20, 1.0, "patch_accuracy", [12.0, 13.0, 14.0]),
        ],
        [
            ContrastFound("token above none", True, Interval(4.1, 1.2, 1.0)),
            ContrastFound("soft above none", False, Interval(-3.0, 1.2, 1.0)),
            ContrastFound("as near", False, Interval(-0.25, 1.2, 1.0), margin=2.0, unit="pixels"),
        ],
        [ViewFound("none", "near", "how near", "pixels", [1.5, 2.5])],
    )


def test_findings_say_what_was_found() -> None:
    found = made_up()
    assert found.verdict == SEEN, "what does not decide does not count"
    page = markdown(found)
    assert page.startswith("# Distillation: a title.\n\n**Seen.** cifar_$10$, scale cpu: 3 seeds, 2,000 test images")
    assert "| token above none | +4.1 points | +2.9 to +5.3 | **seen** |" in page
    assert "| soft above none | -3.0 points | -4.2 to -1.8 | the opposite was seen |" in page
    assert "| as near | -0.25 pixels | -1.4 to +0.95 | seen |" in page
    assert "| how near | arm none | 2 pixels | 1.5, 2.5 |" in page
    assert "| arm none | `vit` | 2,000 x 20 | 1.50 | 50.1 % | 50.1, 51.0, 49.2 |" in page
    assert "13.0 % (patch_accuracy)" in page
    value = json.loads(as_json(found))
    assert value["verdict"] == SEEN
    assert value["contrasts"][1]["verdict"] == OPPOSITE
    assert value["contrasts"][0]["low"] == pytest.approx(2.9)


def test_picture() -> None:
    """A picture with the colours of the two verdicts in it."""
    pixels = np.array(Image.open(io.BytesIO(picture(made_up()))).convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 300_000
    for colour in ((0x2A, 0x9D, 0x78), (0xD1, 0x34, 0x4B), (0x2F, 0x5F, 0xD0)):
        assert (pixels == colour).all(axis=1).sum() > 100, colour


# ---------------------------------------------------------------------- the images


def test_images_are_drawn_evenly_by_seed(tmp_path: Path) -> None:
    def opened(images: int, seed: int) -> dict[str, Any]:
        path = prepared("digits", tmp_path, images=images, test_images=50, side=8, seed=seed)
        return dict(np.load(path))

    few, many, other = opened(40, 0), opened(80, 0), opened(40, 1)
    assert np.bincount(few["y_train"]).tolist() == [4] * 10
    assert np.bincount(few["y_test"]).tolist() == [5] * 10
    assert (few["x_test"] == many["x_test"]).all()
    assert (few["x_test"] == other["x_test"]).all()
    assert few["x_train"].shape == (40, 8, 8, 1)
    assert not (few["x_train"] == other["x_train"]).all()
    chosen, more, watched = ({i.tobytes() for i in array} for array in (few["x_train"], many["x_train"], few["x_val"]))
    assert chosen < more
    assert not chosen & watched
    assert len(few["x_val"]) == 200


def test_all_images_are_shared_by_the_seeds(tmp_path: Path) -> None:
    one, two = (prepared("digits", tmp_path, images=10_000, test_images=9, side=8, seed=s) for s in (0, 1))
    assert one == two
    assert set(open_source(one).splits) == {"train", "test"}
    assert len(open_source(one).splits["train"]) == 1437


def test_photos_become_squares(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(50, 40), (40, 70), (64, 64), (33, 90)] * 3):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (number * 20, 0, 0)).save(folder / f"{number}.png")
    path = prepared(str(tmp_path / "photos"), tmp_path / "out", images=100, test_images=100, side=16, seed=0)
    arrays = np.load(path)
    assert arrays["x_train"].shape[1:] == (16, 16, 3)
    assert arrays["class_names"].tolist() == ["a", "b"]


def test_what_no_study_can_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits has 10 classes, and an arm of this scale learns from 9 images"):
        prepared("digits", tmp_path, images=9, test_images=8, side=8, seed=0)
    images = np.zeros((8, 8, 8, 3), np.uint8)
    hot = np.tile([[1, 1, 0], [0, 1, 1]], (4, 1))
    np.savez(tmp_path / "many.npz", x_train=images, y_train=hot, x_test=images, y_test=hot)
    with pytest.raises(UserError, match="several labels an image"):
        prepared(str(tmp_path / "many.npz"), tmp_path, images=8, test_images=8, side=8, seed=0)


# ---------------------------------------------------------------------- from end to end


def run(name: str, out: Path, seeds: int = 2) -> Findings:
    return trial.try_out(find_study(name), data="digits", scale="smoke", seeds=seeds, out=out)


def watched(monkeypatch: pytest.MonkeyPatch, verb: str) -> list[str]:
    """The names of the run folders that the loop's `verb` is given from now on."""
    names: list[str] = []
    does = getattr(loop, verb)

    def watching(*said: Any) -> Path:
        names.append(said[-1].name)
        folder: Path = does(*said)
        return folder

    monkeypatch.setattr(loop, verb, watching)
    return names


def folders(name: str, out: Path, seeds: int = 2) -> dict[tuple[str, int], Path]:
    """Where the runs of a study lie."""
    study = find_study(name)
    place = trial.Place("digits", study.scales["smoke"], out)
    arms = study.arms(place.scale)
    return {(arm.name, seed): place.folder(arms, arm, seed) for arm in arms if arm.trained for seed in range(seeds)}


KINDS_OF_STUDY = ("distillation", "masked_pretraining", "position_encodings")  # every kind of arm and view


@pytest.mark.parametrize(
    "name", [name if name in KINDS_OF_STUDY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_study_from_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(name, tmp_path)
    study = find_study(name)
    arms = study.arms(study.scales["smoke"])
    places = folders(name, tmp_path)
    assert [arm.name for arm in found.arms] == [arm.name for arm in arms if arm.trained]
    for arm in found.arms:
        for seed, score in enumerate(arm.scores):
            folder = places[arm.name, seed]
            final = json.loads((folder / "final.json").read_text())
            assert score == pytest.approx(100 * final[arm.metric])
            assert not (folder / "checkpoints").exists()
    means = {arm.name: np.mean(arm.scores) for arm in found.arms}
    means |= {f"{one.arm}/{one.view}": np.mean(one.values) for one in found.views}
    assert len(found.views) == len(study.views) * sum(arm.recipe.task == "classify" for arm in arms)
    for one, contrast in zip(found.contrasts, study.contrasts, strict=True):
        mean = sum(weight * means[key] for key, weight in contrast.weights.items())
        assert one.interval.mean == pytest.approx(mean, abs=1e-6)
    assert json.loads((tmp_path / f"{name}.json").read_text())["verdict"] == found.verdict
    assert f"![{name}]({name}.png)" in (tmp_path / f"{name}.md").read_text()
    Image.open(tmp_path / f"{name}.png").verify()
    assert (tmp_path / f"{name}_shown.png").exists() == (study.draw is not None)
    for verb in ("fit", "resume"):
        monkeypatch.setattr(loop, verb, lambda *_: pytest.fail("a finished run is trained again"))
    assert run(name, tmp_path) == found


def test_what_is_not_trained_is_asked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that grow with the pixels, and with their square, have the exponents 1 and 2."""
    monkeypatch.setattr(growth, "seconds", lambda name, side: float(side**4 if name.startswith("vit") else side**2))
    measures = {
        "adds": growth.seconds,
        "seconds": growth.seconds,
        "kept": growth.kept,
        "spelt_out": growth.kept_spelt_out,
    }
    views = {key: replace(growth.VIEWS[key], take=growth.exponent(measure)) for key, measure in measures.items()}
    study = replace(find_study("growth"), views=views)
    found = trial.try_out(study, data="none", scale="smoke", seeds=2, out=tmp_path)
    assert found.arms == []
    values = {f"{one.arm}/{one.view}": one.values[0] for one in found.views}
    assert values["vit/seconds"] == pytest.approx(2)
    assert values["swin/seconds"] == pytest.approx(1)
    assert 0.9 < values["vit/kept"] < 1.05, "the fused kernel keeps no matrix"
    assert values["vit/spelt_out"] > values["vit/kept"] + 0.05
    assert found.verdict == SEEN
    assert "No data, scale smoke: 2 seeds, 32 x 32 pixels" in (tmp_path / "growth.md").read_text()


def test_studies_share_the_runs_that_are_the_same(tmp_path: Path) -> None:
    """One plain ViT for five studies; another number of images is another run."""
    plain = {name: folders(name, tmp_path) for name in ("pooling", "token_mixing", "inductive_bias", "data_hunger")}
    assert plain["pooling"]["token", 0] == plain["token_mixing"]["vit", 0] == plain["inductive_bias"]["plain", 0]
    assert plain["pooling"]["token", 0] != plain["pooling"]["token", 1]
    assert plain["pooling"]["token", 0] not in plain["data_hunger"].values(), "its smallest scale has more images"
    each = [folder for name in plain for folder in plain[name].values()]
    assert len({folder.name for folder in each}) == len(set(each))


def test_findings_name_no_folder(tmp_path: Path) -> None:
    path = prepared("digits", tmp_path / "secret", images=60, test_images=20, side=8, seed=0)
    trial.try_out(find_study("small_data"), data=str(path), scale="smoke", seeds=2, out=tmp_path / "out")
    for ending in ("json", "md"):
        text = (tmp_path / "out" / f"small_data.{ending}").read_text()
        assert path.name in text
        assert "secret" not in text


def test_seeds_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = run("small_data", tmp_path)
    fitted = watched(monkeypatch, "fit")
    three = run("small_data", tmp_path, seeds=3)
    places = folders("small_data", tmp_path, seeds=3)
    assert fitted == [places["plain", 2].name, places["sl", 2].name]
    assert [arm.scores[:2] for arm in three.arms] == [arm.scores for arm in two.arms]


def test_a_study_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its third run, at the first of two steps: the same findings and weights as without that."""
    with monkeypatch.context() as patched:
        stopping(patched, 5)
        with pytest.raises(Interrupted):
            run("small_data", tmp_path / "cut")
    places = folders("small_data", tmp_path / "cut")
    begun = {key for key, folder in places.items() if folder.exists()}
    assert begun == {("plain", 0), ("sl", 0), ("plain", 1)}
    assert not (places["plain", 1] / "final.json").exists()
    resumed = watched(monkeypatch, "resume")
    found, whole = run("small_data", tmp_path / "cut"), run("small_data", tmp_path / "whole")
    assert resumed == [places["plain", 1].name]
    assert found == whole
    others = folders("small_data", tmp_path / "whole")
    for key in (("plain", 1), ("sl", 1)):
        assert bits(places[key]) == bits(others[key])


def test_what_depends_on_other_arms_is_filled_in(tmp_path: Path) -> None:
    def filled(name: str, arm: str, seed: int) -> tuple[Recipe, dict[tuple[str, int], Path]]:
        study = find_study(name)
        place = trial.Place("digits", study.scales["smoke"], tmp_path)
        arms = study.arms(place.scale)
        chosen = next(one for one in arms if one.name == arm)
        recipe = trial.filled_in(arms, chosen, seed, tmp_path / "x.npz", place)
        return recipe, folders(name, tmp_path, seeds=seed + 1)

    recipe, places = filled("distillation", "token", 4)
    assert recipe.distill.teacher == str(places["teacher", 4])
    assert (recipe.seed, recipe.data.source) == (4, str(tmp_path / "x.npz"))
    assert not filled("distillation", "none", 4)[0].distill.teacher
    recipe, places = filled("masked_pretraining", "pretrained", 1)
    assert recipe.initial_checkpoint == str(places["pretraining", 1] / "model.safetensors")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study 'sharpnes'; did you mean 'sharpness'"):
        find_study("sharpnes")
    study = find_study("small_data")
    with pytest.raises(UserError, match="no scale 'cpuu'; did you mean 'cpu'"):
        trial.try_out(study, data="digits", scale="cpuu", seeds=2, out=tmp_path)
    with pytest.raises(UserError, match="1 is too few for --seeds"):
        trial.try_out(study, data="digits", scale="smoke", seeds=1, out=tmp_path)


def test_command_line(tmp_path: Path) -> None:
    listed = vitrail("study", "--list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == NAMES
    assert vitrail("study", "--list", "--json").json()["studies"] == list_studies()
    nothing = vitrail("study")
    assert nothing.code == 1
    assert "`vitrail study --list`" in nothing.err
    said = vitrail(
        "study", "small_data", "--data", "digits", "--scale", "smoke", "--seeds", 2, "--out", tmp_path, "--json"
    )
    assert said.code == 0, said.err
    assert said.json()["study"] == "small_data"
    again = vitrail("study", "small_data", "--data", "digits", "--scale", "smoke", "--seeds", 2, "--out", tmp_path)
    assert again.out.startswith("| compared | difference | 95 % interval | |")
    assert again.out.splitlines()[-1] == said.json()["verdict"]
