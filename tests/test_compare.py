"""Comparisons: what is equal is equal, intervals decide, nothing is done twice, and the page says what was found."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from processes import PROCESSES
from scipy import stats
from test_report import EVIL, Reader

from vitrail.commands import comparing
from vitrail.comparison import charts, compare, entrants, measure, memory, standing
from vitrail.comparison.figures import wilson
from vitrail.comparison.studies.verdict import interval
from vitrail.comparison.summary import between, summary
from vitrail.data.sources import open_source
from vitrail.errors import UserError
from vitrail.recipe import Recipe, Schedule
from vitrail.recipes import find_recipe
from vitrail.training import loop
from vitrail.training.metrics import calibration_error

VIT, CNN, DENSE = "vit_pico_patch2_8", "convmixer_128_4_ks3_p4", "mixer_nano8_32"
CLASSES = [EVIL, "b & c", "plain"]
NUMBER = r"-?\d(?:[\d,]*\d)?(?:\.\d+)?"


def light(patch: pytest.MonkeyPatch) -> None:
    """Small batches without loader processes, and measurements of a moment."""

    def recipe(name: str) -> Recipe:
        found = find_recipe(name)
        return replace(found, data=replace(found.data, workers=0, batch_size=16))

    patch.setattr(entrants, "find_recipe", recipe)
    patch.setattr(measure, "SECONDS", 0.0)
    patch.setattr(measure, "CORRUPTED_IMAGES", 6)
    patch.setattr(measure, "CORRUPTIONS", ("gaussian_noise",))
    patch.setattr(measure, "SEVERITIES", (3,))
    patch.setattr(memory, "peak_memory", lambda _: {"bytes": 300 << 20, "before": 200 << 20, "device": "cpu"})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    light(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of 8 x 8 whose colour is their class, among noise; 12 of each to train, 6 to test; names that bite."""
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("images") / f"{EVIL[:9]}.npz"
    arrays: dict[str, Any] = {}
    for split, count in (("train", 36), ("test", 18)):
        labels = np.arange(count) % 3
        pixels = draw.integers(0, 256, (count, 8, 8, 3))
        pixels[np.arange(count), :, :, labels] += 40
        arrays |= {f"x_{split}": pixels.clip(0, 255).astype(np.uint8), f"y_{split}": labels.astype(np.uint8)}
    np.savez(path, class_names=np.array(CLASSES), **arrays)
    return path


class Compared:
    """A finished comparison, and how to ask for it again."""

    def __init__(self, images: Path, home: Path):
        self.out, self.said, self.joined = home / "out", [], home / "<b>mine"  # type: Path, list[str], Path
        recipe = entrants.find_recipe("scratch")
        data = replace(recipe.data, source=str(images), img_size=8)
        loop.fit(replace(recipe, model="mixer_nano8_32", data=data, schedule=Schedule(epochs=1)), self.joined)
        self.arguments: dict[str, Any] = {
            "data": images,
            "models": [VIT, CNN],
            "runs": [self.joined],
            "epochs": 1,
            "seeds": 2,
            "fractions": (0.5, 1),
            "out": self.out,
            "say": self.said.append,
        }
        self.page = compare.compare(**self.arguments)
        self.text = self.page.read_text(encoding="utf-8")
        self.found: dict[str, Any] = json.loads((self.out / "compare.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    with pytest.MonkeyPatch.context() as patch:
        light(patch)
        yield Compared(images, tmp_path_factory.mktemp("compared"))


# ------------------------------------------------------------------ from end to end


def test_the_folder_holds_what_was_asked_for(compared: Compared) -> None:
    runs = {path.name for path in (compared.out / "runs").iterdir()}
    assert runs == {f"{model}-{seed}{part}" for model in (VIT, CNN) for seed in (0, 1) for part in ("", "-0.5")}
    assert not list(compared.out.glob("runs/*/checkpoints"))
    recipes = [json.loads(path.read_text()) for path in sorted(compared.out.glob("runs/*/recipe.json"))]
    assert {recipe["data"]["limit"] for recipe in recipes} == {None, 18}
    assert {recipe["data"]["img_size"] for recipe in recipes} == {8}
    assert {recipe["optim"]["lr"] for recipe in recipes} == {1e-3 * 16 / 256}
    assert next(line for line in compared.said if line.startswith("run ")).endswith(f"{VIT}, seed 0, 1 epochs")


def test_the_numbers_are_those_of_the_runs(compared: Compared) -> None:
    found = compared.found
    assert {model["label"] for model in found["models"]} == {VIT, CNN, compared.joined.name}
    for model in found["models"]:
        folders = (
            [compared.joined] if model["joined"] else [compared.out / f"runs/{model['label']}-{s}" for s in (0, 1)]
        )
        shares = [json.loads((folder / "final.json").read_text())["top1"] for folder in folders]
        accuracy = model["accuracy"]
        assert accuracy["by_seed"] == pytest.approx(shares)
        assert accuracy["top1"] == pytest.approx(np.mean(shares))
        assert (accuracy["low"], accuracy["high"]) == wilson(accuracy["top1"], 18)
        assert sum(map(sum, model["classes"]["confusion"])) == 18 * len(folders)
        assert model["train_seconds"] > 0
        assert model["train_flops"] == 3 * model["flops"] * 2 * 16  # two steps of 16 of 36 images
    assert [m["accuracy"]["top1"] for m in found["models"]] == sorted(
        (m["accuracy"]["top1"] for m in found["models"]), reverse=True
    )
    kinds = {model["model"]: model["mixes_by"] for model in found["models"]}
    assert kinds == {VIT: "attention", CNN: "convolution", DENSE: "dense layers"}
    pairs = found["differences"]
    assert len(pairs) == 3
    tops = {m["label"]: m["accuracy"]["top1"] for m in found["models"]}
    gap = between(pairs, VIT, CNN)
    assert gap["seeds"] == 2
    assert gap["points"] == pytest.approx(100 * (tops[VIT] - tops[CNN]))
    assert {p["seeds"] for p in pairs if compared.joined.name in (p["one"], p["other"])} == {1}
    half, whole = found["fractions"]
    assert (half["images"], whole["images"]) == (18, 36)
    assert set(half["models"]) == {VIT, CNN}
    assert whole["models"][VIT] == found["models"][[m["label"] for m in found["models"]].index(VIT)]["accuracy"]
    assert len(found["similarity"]) == 3
    assert set(found["robustness"]) == set(tops)


def test_the_page_is_whole_and_safe(compared: Compared) -> None:
    read = Reader(compared.text)
    assert EVIL in read.words
    assert compared.joined.name in read.words
    assert "<img src=x" not in compared.text
    assert "<b>mine" not in compared.text
    assert "script" not in read.tags
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]+", "", compared.text))
    assert all(link.startswith("data:image/png;base64,") for link in read.links)
    assert len(compared.text) < 10e6
    for text in (compared.text, json.dumps(compared.found)):
        assert str(compared.out.parent) not in text, "the page is shown to others"
    assert re.findall("<h2>(.*?)</h2>", compared.text) == [
        "How they were compared",
        "How good they are",
        "What they cost",
        "Accuracy against cost",
        "Which can be told apart",
        "Class by class",
        "Whether their confidence can be trusted",
        "With fewer images to learn from",
        "When the images get worse",
        "Where they disagree",
        "How alike they are inside",
        "What this does not say",
    ]
    assert not re.search(r"\bnan\b|\binf\b|None", read.words)


def test_every_number_of_the_summary_stands_in_a_table(compared: Compared) -> None:
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", compared.text, re.DOTALL)
    standing_there = {number for cell in cells for number in re.findall(NUMBER, Reader(cell).words)}
    assert len(compared.found["summary"]) >= 6
    for sentence in compared.found["summary"]:
        if sentence.startswith("Models with one seed"):
            continue
        plain = sentence.replace("batches of 32", "")
        for label in (VIT, CNN, compared.joined.name):
            plain = plain.replace(label, "")
        numbers = set(re.findall(NUMBER, plain))
        assert numbers, sentence
        assert numbers <= standing_there, sentence


def test_every_image_of_the_disagreement_shows_every_model(compared: Compared) -> None:
    part = re.search("Where they disagree.*?</section>", compared.text, re.DOTALL)
    assert part
    shown = compared.found["disagreement"]["images"]
    assert shown, "models of one epoch agree everywhere?"
    assert part.group().count("<img") == len(shown) * 4
    for image in shown:
        right = [said["right"] for said in image["answers"].values()]
        assert any(right)
        assert not all(right)


def test_nothing_is_done_twice(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        (loop, ("fit", "resume")),
        (measure, ("score", "robustness", "cka", "look")),
        (measure.cost, ("images_per_second",)),
        (memory, ("peak_memory",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} is called again"))
    compare.compare(**compared.arguments)
    again = json.loads((compared.out / "compare.json").read_text())
    again["setting"]["written"] = compared.found["setting"]["written"]
    assert again == compared.found


def test_a_run_that_was_trained_again_is_measured_again(compared: Compared, tmp_path: Path) -> None:
    one = measure.subject(compared.joined, tmp_path)
    other = tmp_path / compared.joined.name
    other.mkdir()
    for name in ("model.safetensors", "recipe.json"):
        (other / name).write_bytes((compared.joined / name).read_bytes())
    assert measure.subject(other, tmp_path).place == one.place
    (other / "model.safetensors").write_bytes(b"other weights")
    assert measure.subject(other, tmp_path).place != one.place


def test_another_setting_is_refused(compared: Compared) -> None:
    for change, name in (
        ({"epochs": 2}, "schedule.epochs"),
        ({"limit": 9}, "data.limit"),
        ({"budget": "flops"}, "budget"),
    ):
        with pytest.raises(UserError, match=f"another setting of .*{name}.*choose another --out"):
            compare.compare(**{**compared.arguments, **change})


# ------------------------------------------------------------------ killed


def comparing_digits(out: str) -> None:
    """A comparison on digits, in a process of its own."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        light(patch)
        digits(Path(out))


def digits(out: Path) -> Path:
    return compare.compare("digits", [VIT, CNN], epochs=8, limit=128, out=out)


@pytest.mark.usefixtures("quick")
def test_a_killed_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the second of two trainings: the first is not repeated, the second goes on from its checkpoint."""
    first, second = (tmp_path / "out" / "runs" / f"{name}-0" for name in (VIT, CNN))
    process = PROCESSES.Process(target=comparing_digits, args=(str(tmp_path / "out"),), daemon=False)
    process.start()
    while process.is_alive() and not list(second.glob("checkpoints/step-*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert (first / "final.json").exists()
    assert not (second / "final.json").exists()
    weights = (first / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("what was begun is begun again"))
    starts: list[int] = []
    restore = loop.Trainer.restore

    def restoring(self: loop.Trainer, last: Path) -> None:
        restore(self, last)
        starts.append(self.step)

    monkeypatch.setattr(loop.Trainer, "restore", restoring)
    page = digits(tmp_path / "out")
    assert page.exists()
    assert len(starts) == 1
    assert starts[0] >= 8, "an epoch of 128 images has 8 steps of 16"
    assert (first / "model.safetensors").stat().st_mtime_ns == weights


# ------------------------------------------------------------------ budgets and refusals


def terms(**changes: Any) -> entrants.Terms:
    said: dict[str, Any] = {"recipe": None, "epochs": 10, "budget": "epochs", "minutes": None, "img_size": None}
    return entrants.agreed("digits", ["a", "b"], **{**said, "limit": None, **changes})


def test_equal_epochs_multiply_adds_and_time() -> None:
    two = [entrants.Entrant("a", "a", flops=30), entrants.Entrant("b", "b", flops=100)]
    assert entrants.epochs_of(two, terms(), {}) == {"a": 10, "b": 10}
    assert entrants.epochs_of(two, terms(budget="flops"), {}) == {"a": 10, "b": 3}
    timed = terms(budget="time", epochs=None, minutes=2)
    assert entrants.epochs_of(two, timed, {"a": 7.0, "b": 60.0}) == {"a": 17, "b": 2}
    with pytest.raises(UserError, match=r"an epoch of b takes 2\.5 minutes here, more than the 2 of --minutes"):
        entrants.epochs_of(two, timed, {"a": 7.0, "b": 150.0})


def test_a_schedule_keeps_its_shape() -> None:
    short = entrants.of_length(Schedule(epochs=100, warmup_epochs=5.0, cooldown_epochs=20.0, frozen_epochs=10), 10)
    assert (short.epochs, short.warmup_epochs, short.cooldown_epochs, short.frozen_epochs) == (10, 0.5, 2.0, 1)


@pytest.mark.usefixtures("quick")
def test_equal_time_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epochs come from a short run, which is not repeated."""
    monkeypatch.setattr(compare, "PACE_BATCHES", 2)
    said: list[str] = []
    agreed = terms(budget="time", epochs=None, minutes=1)
    agreed = replace(agreed, recipe=replace(agreed.recipe, data=replace(agreed.recipe.data, img_size=8)))
    one = entrants.Entrant(VIT, VIT)
    source = open_source("digits")
    seconds = compare._pace(one, agreed, source, tmp_path, said.append)
    log = (tmp_path / "pace" / VIT / "log.jsonl").read_text().splitlines()
    assert seconds == pytest.approx(len(source.splits["train"]) / json.loads(log[-1])["images_per_s"])
    assert compare._pace(one, agreed, source, tmp_path, said.append) == seconds
    assert said == [f"timing an epoch of {VIT}"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models": [VIT]}, "needs two models at least"),
        ({"models": [VIT, VIT]}, "is named twice in --models"),
        ({"models": [VIT, "vit_pico_patch2_9"]}, "did you mean 'vit_pico_patch2_8'"),
        ({"models": [VIT, "alexnet"]}, r"alexnet cannot be built for images of 8 px .*--img-size"),
        ({"models": [VIT, CNN], "seeds": 0}, "--seeds is 0"),
        ({"models": [VIT, CNN], "epochs": 0}, "--epochs is 0"),
        ({"models": [VIT, CNN], "fractions": (0.5, 1.5)}, r"--fractions has 1\.5"),
        ({"models": [VIT, CNN], "fractions": (0.001,)}, "leaves 1 of 1,437 images"),
        ({"models": [VIT, CNN], "budget": "time"}, "--budget time needs --minutes"),
        ({"models": [VIT, CNN], "minutes": 3.0}, "--budget epochs has no use for --minutes"),
        ({"models": [VIT, CNN], "recipe": "scrach"}, "did you mean 'scratch'"),
    ],
)
def test_refused_before_anything_is_trained(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        compare.compare("digits", **changes, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_runs_that_cannot_join(compared: Compared, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"digits has 10 classes and the run .* 3; compare it on data"):
        compare.compare("digits", [VIT], runs=[compared.joined], out=tmp_path)
    with pytest.raises(UserError, match="neither a run folder nor a model"):
        compare.compare("digits", [VIT], runs=["nowhere"], out=tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_run_that_knows_the_scored_images_is_refused(images: Path, tmp_path: Path) -> None:
    """Without a split of their own, images are held out by seed: a run of another seed has learned some of them."""
    arrays = np.load(images)
    np.savez(tmp_path / "one.npz", **{key: arrays[key] for key in ("class_names", "x_train", "y_train")})
    recipe = entrants.find_recipe("scratch")
    data = replace(recipe.data, source=str(tmp_path / "one.npz"), img_size=8)
    for seed in (0, 1):
        one = replace(recipe, model=VIT, seed=seed, data=data, schedule=Schedule(epochs=1))
        loop.fit(one, tmp_path / f"run-{seed}")
    source = open_source(tmp_path / "one.npz")
    agreed = entrants.agreed(
        str(tmp_path / "one.npz"), [], recipe=None, epochs=1, budget="epochs", minutes=None, img_size=8, limit=None
    )
    assert [one.label for one in entrants.joining([tmp_path / "run-0"], source, agreed, [])] == ["run-0"]
    with pytest.raises(UserError, match=r"was trained on \d of the 6 images that are scored here"):
        entrants.joining([tmp_path / "run-1"], source, agreed, [])


def test_small_squares_keep_their_size(images: Path) -> None:
    source = open_source(images)
    assert entrants.image_side(source) == 8
    tall = replace(source, splits={"train": open_source("digits").splits["train"]})
    assert entrants.image_side(tall) == 8
    large = replace(source, splits={"train": _Fixed((3, 97, 97))})  # type: ignore[dict-item]
    assert entrants.image_side(large) is None
    oblong = replace(source, splits={"train": _Fixed((3, 8, 9))})  # type: ignore[dict-item]
    assert entrants.image_side(oblong) is None


class _Fixed:
    """A split of one image."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __len__(self) -> int:
        return 1

    def read(self, _: int) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.uint8)


def test_command_line(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(compared.arguments["data"]), "--models", f"{VIT}, {CNN}", "--runs", str(compared.joined)]
    words += ["--epochs", "1", "--seeds", "2", "--fractions", "0.5,1", "--out", str(compared.out)]
    tyro.cli(comparing.compare, args=words)
    assert capsys.readouterr().out.splitlines() == compared.found["summary"]
    tyro.cli(comparing.compare, args=[*words, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["page"] == str(compared.page)
    assert said["models"] == compared.found["models"]
    with pytest.raises(UserError, match="--fractions is 'half'"):
        tyro.cli(comparing.compare, args=["digits", "--models", VIT, "--fractions", "half"])


def test_peak_memory_is_that_of_a_process_of_its_own(compared: Compared) -> None:
    hog = np.ones(2**27)  # a gigabyte of this process is not the model's
    found = MEASURED(compared.joined, 4)
    assert hog[-1] == 1
    assert 50 << 20 < found["before"] <= found["bytes"] < 2**30


MEASURED = memory.peak_memory


# ------------------------------------------------------------------ statistics


def answers(right: list[bool] | np.ndarray[Any, Any], names: str = "x", seed: int = 0) -> standing.Answers:
    """Answers of two classes, of which those are right."""
    hits = np.asarray(right)
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, len(hits))
    said = np.where(hits, labels, 1 - labels)
    logits = np.zeros((len(hits), 2))
    logits[np.arange(len(hits)), said] = draw.uniform(0.1, 4, len(hits))
    return standing.Answers(logits, labels, tuple(f"{names}{i}" for i in range(len(hits))), np.arange(len(hits)))


def test_difference_with_one_seed_by_hand() -> None:
    """Ten images: 4 that only one has right, 1 that only the other has."""
    one = answers([True] * 4 + [False] + [True] * 3 + [False] * 2)
    other = answers([False] * 4 + [True] + [True] * 3 + [False] * 2)
    found = standing.difference({0: one}, {0: other})
    half = 1.96 * (6 - 9 / 12) ** 0.5 / 12
    assert found["points"] == pytest.approx(30)
    assert (found["low"], found["high"]) == pytest.approx((100 * (0.25 - half), 100 * (0.25 + half)))
    assert found["p"] == pytest.approx(stats.binomtest(4, 5).pvalue)
    back = standing.difference({0: other}, {0: one})
    assert (back["points"], back["low"]) == pytest.approx((-30, -found["high"]))
    same = standing.difference({0: one}, {0: one})
    assert (same["points"], same["p"], standing.told_apart(same)) == (0, 1, False)


@pytest.mark.parametrize(("images", "gap"), [(60, 0.0), (400, 0.08)])
def test_intervals_of_one_seed_hold_the_truth(images: int, gap: float) -> None:
    """Of 500 comparisons on images that are hard or easy for both, about 95 % of the intervals hold the difference."""
    draw, cuts = np.random.default_rng(0), (0.6 + gap, 0.6)

    def asked(count: int) -> list[Any]:
        hard = draw.random(count)
        return [hard + 0.3 * draw.standard_normal(count) < cut for cut in cuts]

    one, other = asked(1_000_000)
    truth = 100 * (one.mean() - other.mean())
    found = [standing.difference({0: answers(one)}, {0: answers(other)}) for one, other in map(asked, [images] * 500)]
    assert sum(each["low"] <= truth <= each["high"] for each in found) / 500 > 0.93


def test_difference_with_seeds_is_that_of_studies() -> None:
    draw = np.random.default_rng(0)
    right = draw.random((2, 3, 50)) < np.array([0.7, 0.5])[:, None, None]
    sides = [{seed: answers(right[k, seed], seed=seed) for seed in range(3)} for k in (0, 1)]
    found, expected = standing.difference(*sides), interval(100.0 * (right[0].astype(float) - right[1]))
    assert (found["points"], found["low"], found["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (found["seeds"], found["p"]) == (3, None)


def test_seeds_that_hold_out_other_images() -> None:
    """Each image counts where it was scored."""
    sides = [
        {0: answers(first, "a"), 1: answers(second, "b")}
        for first, second in (([True, True, False, True], [True, True]), ([False, True, False, True], [True, False]))
    ]
    found = standing.difference(*sides)
    assert found["points"] == pytest.approx((25 + 50) / 2)
    each = 100 * np.array([1, 0, 0, 0, 0, 1])
    by_seed = 12.7062 * np.std([25, 50], ddof=1) / 2**0.5
    assert found["high"] - found["points"] == pytest.approx(max(by_seed, 1.96 * stats.sem(each)), rel=1e-4)


def test_calibration() -> None:
    one = answers(np.random.default_rng(1).random(400) < 0.6)
    found = standing.calibration({0: one})
    sure, right = torch.from_numpy(one.probabilities.max(axis=1)), torch.from_numpy(one.right)
    assert found["error"] == pytest.approx(calibration_error(sure, right))
    bins = found["bins"]
    assert sum(b["images"] for b in bins) == 400
    error = sum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 400
    assert error == pytest.approx(found["error"])
    assert found["temperature"] > 1, "it is surer than it is right"
    assert found["scaled"] < found["error"]


def test_no_image_is_scaled_with_a_temperature_fitted_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []

    def temperature(logits: torch.Tensor, _: torch.Tensor) -> float:
        fitted.append(logits)
        return float(2 ** len(fitted))

    monkeypatch.setattr(standing, "temperature", temperature)
    one = answers([True, False] * 20)
    sure, _, heat = standing._cooled(one)
    assert heat == 3
    for k, other in ((0, 4.0), (1, 2.0)):
        for row in fitted[k]:
            i = int(np.flatnonzero((one.logits == row.numpy()).all(axis=1))[0])
            assert float(sure[i]) == pytest.approx(float((row / other).softmax(0).max()))


def test_disagreements_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    said = {
        "a": [[3, 0], [2, 0], [0, 1], [0, 2], [4, 0]],
        "b": [[1, 0], [0, 5], [0, 1], [1, 0], [3, 0]],
        "c": [[2, 0], [0, 1], [1, 0], [0, 1], [1, 0]],
    }
    names = tuple("vwxyz")
    each = {k: standing.Answers(np.array(v, float), labels, names, np.arange(5) + 10) for k, v in said.items()}
    found = standing.disagreements(each, ["no", "yes"])
    assert (found["all_right"], found["none_right"], found["divided"]) == (1, 1, 3)
    assert found["alone"] == {"a": 1, "b": 0, "c": 1}
    assert [image["file"] for image in found["images"]] == ["w", "y", "x"]
    first = found["images"][0]
    assert (first["index"], first["true"]) == (11, "no")
    assert {label: one["right"] for label, one in first["answers"].items()} == {"a": True, "b": False, "c": False}
    assert first["answers"]["b"]["predicted"] == "yes"
    assert first["answers"]["b"]["probability"] == pytest.approx(1 / (1 + np.exp(-5)))


# ------------------------------------------------------------------ words


def told(*gaps: tuple[str, str, float, float, float], flops: tuple[int, ...] = (300, 200, 100)) -> list[str]:
    """The summary of three models x, y, z with these differences."""
    models = [
        {
            "label": label,
            "seeds": 2,
            "accuracy": {"top1": top1, "low": top1 - 0.02, "high": top1 + 0.02},
            "flops": cost,
            "images_per_second": {"32": 1000.0 + cost},
            "calibration": {"error": 0.1, "scaled": 0.05},
        }
        for (label, top1), cost in zip((("x", 0.6), ("y", 0.57), ("z", 0.5)), flops, strict=True)
    ]
    keys = ("one", "other", "points", "low", "high")
    votes = {"all_right": 1, "none_right": 2, "divided": 3}
    differences = [dict(zip(keys, gap, strict=True)) for gap in gaps]
    found = {"models": models, "differences": differences, "fractions": [], "robustness": {}, "disagreement": votes}
    return summary(found)


def test_sentences_are_chosen_by_intervals() -> None:
    clear = told(("x", "y", 3.0, 0.4, 5.6), ("x", "z", 10.0, 8.0, 12.0), ("y", "z", 7.0, 5.0, 9.0))
    assert clear[0] == ("x is the most accurate: 60.0 % (58.0 to 62.0), 3.0 points above y (interval 0.4 to 5.6).")
    assert clear[1] == "y and z differ: 7.0 points, interval 5.0 to 9.0."
    assert not any("multiply-adds" in sentence for sentence in clear)
    close = told(("x", "y", 3.0, -0.4, 6.4), ("x", "z", 10.0, 8.0, 12.0), ("y", "z", 7.0, -1.0, 15.0))
    assert "most accurate" not in close[0]
    assert close[0].endswith("but cannot be told apart from y (3.0 points, interval -0.4 to 6.4).")
    assert close[1] == "y and z cannot be told apart (7.0 points, interval -1.0 to 15.0)."
    assert close[2] == "y, which cannot be told apart from x, takes 200 multiply-adds an image against 300."


def test_an_order_that_the_common_seeds_contradict_is_told() -> None:
    """The first is so by the mean over its seeds; on the seed of a run that joined, that run is better."""
    odd = told(("x", "y", -3.0, -5.6, -0.4), ("x", "z", 10.0, 8.0, 12.0), ("y", "z", 7.0, 5.0, 9.0))
    assert odd[0] == "x has the highest accuracy, 60.0 % (58.0 to 62.0), over all its seeds."
    assert odd[1] == "On the seeds that both have, y is better than x: -3.0 points, interval -5.6 to -0.4."


def test_between_turns_a_difference_round() -> None:
    gaps = [{"one": "a", "other": "b", "points": 2.0, "low": -1.0, "high": 5.0, "seeds": 1}]
    assert between(gaps, "a", "b") == gaps[0]
    assert between(gaps, "b", "a") == {"one": "b", "other": "a", "points": -2.0, "low": -5.0, "high": 1.0, "seeds": 1}
    with pytest.raises(KeyError):
        between(gaps, "a", "c")


# ------------------------------------------------------------------ charts


def test_points_keep_their_order_and_leave_out_what_cannot_be_drawn() -> None:
    at = [charts.Point(x, y, y - 0.05, y + 0.05) for x, y in ((1e6, 0.5), (1e8, 0.9), (0.0, 0.7))]
    drawn = charts.interval_points("t", [charts.Series(EVIL, "red", [one]) for one in at], "cost")
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert len(places) == 2
    assert float(places[0][0]) < float(places[1][0])
    assert float(places[0][1]) > float(places[1][1])
    assert "<img" not in drawn
    assert charts.interval_points("t", [charts.Series("a", "red", [at[2]])], "cost") == ""
    joined = charts.interval_points("t", [charts.Series("a", "red", at[:2], joined=True)], "cost")
    assert joined.count("<polyline") == 1


def test_bars_go_from_zero_to_their_value() -> None:
    rows = [charts.Row("up", "red", 4.0, 2.0, 6.0), charts.Row("down", "red", -2.0, -3.0, -1.0)]
    drawn = charts.interval_rows("t", rows, "points")
    zero = float(re.findall(r'class="zero" x1="([\d.]+)"', drawn)[0])
    (up, wide), (down, narrow) = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    ]
    assert up == pytest.approx(zero, abs=0.11)
    assert down + narrow == pytest.approx(zero, abs=0.11)
    assert wide == pytest.approx(2 * narrow, abs=0.2)


def test_a_calibrated_model_lies_on_the_diagonal() -> None:
    drawn = charts.reliability(EVIL, [charts.Bin(0.25, 0.25, 10), charts.Bin(0.75, 0.75, 40)], "red")
    places = np.array(re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn), float)
    line = np.array(re.findall(r'class="zero" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', drawn), float)[
        0
    ]
    slope = (line[3] - line[1]) / (line[2] - line[0])
    assert places[:, 1] == pytest.approx(line[1] + slope * (places[:, 0] - line[0]), abs=0.2)
    assert "<img" not in drawn


@pytest.mark.parametrize(("low", "high"), [(3.0, 40.0), (1.2e5, 9e9), (0.2, 0.9), (110.0, 190.0)])
def test_log_ticks(low: float, high: float) -> None:
    marks = charts.log_ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert all(low <= mark <= high for mark in marks)
    assert all(float(f"{mark:.1e}") == pytest.approx(mark) for mark in marks), "they are round"


def test_short_counts() -> None:
    assert [charts.short_count(n) for n in (999, 1234, 5_600_000, 2.5e9, 9.72e12)] == [
        "999",
        "1.23 k",
        "5.6 M",
        "2.5 G",
        "9.72 T",
    ]
