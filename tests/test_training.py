"""What one run promises: same seed same bits, every part of the recipe at work, one sentence a mistake, damaged files
named and in no denominator."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import vitrail
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import bits, distance, read, stopped, tiny, weights

from vitrail import checkpoint
from vitrail.comparison.report import write_report
from vitrail.errors import UserError
from vitrail.recipe import Recipe, from_json
from vitrail.run import build, load, open_data
from vitrail.training import loop
from vitrail.training.evaluate import evaluate
from vitrail.training.predict import predict
from vitrail.training.tasks.distill import Teacher


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny()`."""
    return loop.fit(tiny(), tmp_path_factory.mktemp("plain") / "run")


# ---------------------------------------------------------------------- one update


def one_update(tmp_path: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after a run of a single SGD step over 32 images."""
    settings = {"optim__name": "sgd", "optim__lr": 0.1, "optim__weight_decay": 0.0, "optim__clip_grad": None}
    settings |= {
        "data__limit": 32,
        "schedule__epochs": 1,
        "schedule__warmup_epochs": 0.0,
        "ema": None,
        "drop_path": 0.0,
    }
    recipe = tiny(**{**settings, **changes})
    out = loop.fit(recipe, tmp_path / "_".join(["run", *map(str, changes.values())]))
    before = build(from_json((out / "recipe.json").read_text()), 10).state_dict()
    return before, weights(out)


@pytest.mark.parametrize("parts", [4, 5, 100])
def test_accumulation_is_one_big_batch(tmp_path: Path, parts: int) -> None:
    before, whole = one_update(tmp_path)
    _, accumulated = one_update(tmp_path, optim__accumulate=parts)
    assert distance(before, whole) > 0.01
    assert all(torch.allclose(whole[key], accumulated[key], rtol=0, atol=1e-6) for key in whole)


def test_gradients_are_clipped_to_their_global_norm(tmp_path: Path) -> None:
    before, clipped = one_update(tmp_path, optim__clip_grad=1e-3)
    assert distance(before, clipped) == pytest.approx(0.1 * 1.9 * 1e-3, rel=1e-3)  # Nesterov's first step: (1 + 0.9) g
    before, free = one_update(tmp_path)
    assert distance(before, free) > 100 * distance(before, clipped)


def test_weight_decay_shrinks_weights_alone(tmp_path: Path) -> None:
    before, after = one_update(tmp_path, optim__name="adamw", optim__weight_decay=0.5, optim__lr=1e-6, seed=3)
    before_without, without = one_update(tmp_path, optim__name="adamw", optim__lr=1e-6, seed=3)
    assert distance(before, before_without) == 0
    weight, norm = "blocks.0.mlp.fc1.weight", "blocks.0.norm1.weight"
    assert torch.allclose(after[weight] - without[weight], -0.5e-6 * before[weight], atol=1e-7)
    assert torch.equal(after[norm], without[norm])
    assert torch.equal(after["pos_embed"], without["pos_embed"])


# ---------------------------------------------------------------------- a run


def test_a_run_leaves_what_others_read(plain: Path) -> None:
    assert read(plain, "classes.json") == [str(k) for k in range(10)]
    log = [json.loads(line) for line in (plain / "log.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in log] == [(1, 3), (2, 6)]
    final = read(plain, "final.json")
    assert (final["n"], final["damaged"], final["split"]) == (96, [], "test")
    assert final["loss"] == pytest.approx(log[-1]["val_loss"])
    assert np.array(final["confusion"]).trace() == round(final["top1"] * final["n"])
    recipe = from_json((plain / "recipe.json").read_text())
    assert (recipe.data.img_size, recipe.data.in_chans, recipe.data.mean) == (8, 1, (0.5,))
    for file in ("model.safetensors", "classes.json", "recipe.json", "log.jsonl", "final.json", "damaged.json"):
        assert (plain / file).stat().st_mode & 0o777 == 0o644
    assert not list(plain.rglob(".*"))


def test_the_same_seed_gives_the_same_bits(plain: Path, tmp_path: Path) -> None:
    torch.manual_seed(77)
    assert bits(loop.fit(tiny(), tmp_path / "same")) == bits(plain)
    assert bits(loop.fit(tiny(seed=1), tmp_path / "other")) != bits(plain)


def test_the_number_of_loader_processes_changes_nothing(plain: Path, tmp_path: Path) -> None:
    assert bits(loop.fit(tiny(data__workers=2), tmp_path / "run")) == bits(plain)


STRENGTHS = {"magnitude": 3, "std": 3.0, "prob": 0.5}
GIVEN: dict[str, dict[str, Any]] = {
    "": {},
    "resized": {"augment__crop": "resized"},
    "still": {"augment__crop": "none", "data__img_size": 10},
    "erasing": {"augment__erasing": 1.0},
    "rand_augment": {"augment__rand_augment": 2},
    "rsqrt": {"schedule__name": "rsqrt"},
    "masked": {"task": "masked_patches"},
}
EFFECTS: dict[str, list[tuple[str, Any]]] = {
    "": [
        ("model", "vit_pico_patch4_32"),
        ("seed", 1),
        ("data__batch_size", 31),
        ("data__limit", 90),
        ("data__mean", (0.4,)),
        ("data__std", (0.4,)),
        ("data__in_chans", 3),
        ("data__repeats", 2),
        ("data__balanced", True),
        ("augment__crop_padding", 2),
        ("augment__flip", 0.0),
        ("augment__rotate", 0.0),
        ("augment__rand_augment", 1),
        ("augment__auto_augment", "svhn"),
        ("augment__color_jitter", 0.5),
        ("augment__erasing", 1.0),
        ("augment__mixup", 0.0),
        ("augment__cutmix", 0.0),
        ("augment__mix_prob", 0.5),
        ("optim__name", "sgd"),
        ("optim__name", "momentum"),
        ("optim__name", "adafactor"),
        ("optim__lr", 1e-3),
        ("optim__lr_batch", 64),
        ("optim__weight_decay", 0.5),
        ("optim__betas", (0.9, 0.9)),
        ("optim__clip_grad", None),
        ("optim__accumulate", 5),
        ("optim__rho", 0.1),
        ("optim__layer_decay", 0.5),
        ("optim__head_lr", 2.0),
        ("optim__head_weight_decay", 3.0),
        ("schedule__name", "linear"),
        ("schedule__name", "rsqrt"),
        ("schedule__name", "constant"),
        ("schedule__epochs", 1),
        ("schedule__warmup_epochs", 0.5),
        ("schedule__min_lr", 0.5),
        ("schedule__frozen_epochs", 1),
        ("loss", "bce"),
        ("class_weights", "3=5,7=0.5"),
        ("head_bias", 0.0),
        ("label_smoothing", 0.4),
        ("drop_path", 0.5),
        ("patch_drop", 0.5),
        ("dropout", 0.2),
        ("ema", None),
        ("ema", 0.1),
        ("precision", "bf16"),
        ("precision", "fp16"),
    ],
    "resized": [("augment__crop", "padded"), ("augment__crop_scale", (0.5, 1.0)), ("data__interpolation", "nearest")],
    "still": [("data__crop_pct", 0.6), ("data__img_size", 8)],
    "erasing": [("augment__erasing_scale", (0.2, 0.3)), ("augment__erasing_fill", "mean")],
    "rand_augment": [(f"augment__rand_augment_{name}", value) for name, value in STRENGTHS.items()],
    "rsqrt": [("schedule__timescale_epochs", 3.0), ("schedule__cooldown_epochs", 1.0)],
    "masked": [("task", "classify"), ("masked__share", 0.3), ("masked__target", "mean"), ("masked__target", "pixels")],
}
ELSEWHERE = {
    *("data__source", "data__val_fraction", "pretrained", "initial_checkpoint"),
    *("distill__teacher", "distill__kind", "distill__alpha", "distill__tau"),  # below
    *("data__workers", "compile", "sharded", "checkpoint_minutes"),  # change nothing but the time
}


@pytest.fixture(scope="module")
def bits_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The weights that a run ends with, by the name of what is given."""
    made: dict[str, bytes] = {}

    def run(given: str) -> bytes:
        if given not in made:
            made[given] = bits(loop.fit(tiny(**GIVEN[given]), tmp_path_factory.mktemp("given") / "run"))
        return made[given]

    return run


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [(given, field, value) for given, fields in EFFECTS.items() for field, value in fields],
    ids=lambda each: str(each).replace(" ", ""),
)
def test_every_part_of_a_recipe_has_an_effect(
    bits_of: Callable[[str], bytes], tmp_path: Path, given: str, field: str, value: Any
) -> None:
    out = loop.fit(tiny(**{**GIVEN[given], field: value}), tmp_path / "run")
    assert bits(out) != bits_of(given)
    assert all(torch.isfinite(each).all() and each.dtype == torch.float32 for each in weights(out).values())
    assert math.isfinite(read(out, "final.json")["loss"])


def test_no_part_of_a_recipe_is_forgotten() -> None:
    tried = {field for fields in EFFECTS.values() for field, _ in fields}
    fields = set()
    for each in dataclasses.fields(Recipe):
        inner = getattr(Recipe(), each.name)
        parts = dataclasses.fields(inner) if dataclasses.is_dataclass(inner) else []
        fields |= {f"{each.name}__{part.name}" for part in parts} or {each.name}
    assert tried | ELSEWHERE == fields
    assert not tried & ELSEWHERE


def test_training_learns(tmp_path: Path) -> None:
    recipe = tiny(
        data__limit=200, schedule__epochs=12, ema=0.9, optim__lr=4e-3, augment__mixup=0.0, augment__cutmix=0.0
    )
    assert read(loop.fit(recipe, tmp_path / "run"), "final.json")["top1"] > 0.3, "chance is 0.1"


def test_an_epoch_is_scored_in_the_precision_of_training_and_the_run_in_full(tmp_path: Path) -> None:
    folder = loop.fit(tiny(precision="bf16"), tmp_path / "run")
    last, final = json.loads((folder / "log.jsonl").read_text().splitlines()[-1]), read(folder, "final.json")
    assert last["split"] == final["split"]
    assert last["val_loss"] != final["loss"]
    assert last["val_loss"] == pytest.approx(final["loss"], rel=0.02)
    assert final["loss"] == evaluate(folder)["loss"]


def test_the_moving_average_is_what_is_scored_and_saved(plain: Path) -> None:
    state = checkpoint.load(plain / "checkpoints")
    assert state is not None
    shared = weights(plain)
    assert all(torch.equal(shared[key], state["ema"][key]) for key in shared)
    assert any(not torch.equal(shared[key], state["model"][key]) for key in shared)
    run = load(plain)
    assert evaluate(run)["loss"] == pytest.approx(read(plain, "final.json")["loss"], abs=1e-6)
    run.model.load_state_dict(state["model"])
    assert abs(evaluate(run)["loss"] - read(plain, "final.json")["loss"]) > 1e-3


# ---------------------------------------------------------------------- what stops a run


def test_a_folder_that_holds_a_run_is_not_taken(plain: Path) -> None:
    with pytest.raises(UserError, match=r"^.* already holds a run; continue it with --resume .*, or choose another"):
        loop.fit(tiny(), plain)


@pytest.mark.parametrize("where", ["file/run", "file", "/proc/run"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot make the folder .*; choose another --out$"):
        loop.fit(tiny(), tmp_path / where)


def test_a_divergent_run_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped(monkeypatch, tmp_path / "run", 2, tiny(checkpoint_minutes=0.0))
    kept = {path.name: (path / "state.pt").read_bytes() for path in (out / "checkpoints").iterdir()}
    state = checkpoint.load(out / "checkpoints")
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    next(iter(state["model"].values())).fill_(math.nan)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "read", lambda _: state)
        with pytest.raises(UserError, match=r"^the loss became nan at step 2 \(epoch 1\), .* before that update; try"):
            loop.resume(out)
    assert {path.name: (path / "state.pt").read_bytes() for path in (out / "checkpoints").iterdir()} == kept
    loop.resume(out)
    assert (out / "final.json").exists()


def test_the_update_that_is_refused_does_not_happen(plain: Path, tmp_path: Path) -> None:
    recipe = load(plain).recipe
    trainer = loop.Trainer(recipe, tmp_path, open_data(recipe))
    (batch, *_) = trainer.loader.epoch(0)
    trainer.model.get_parameter("head.bias").data[0] = math.nan
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=r"^the loss became nan at step 0 "):
        trainer.update(batch, 1e-3)
    after = trainer.model.state_dict()
    assert all(torch.allclose(after[key], before[key], rtol=0, atol=0, equal_nan=True) for key in before)
    assert not trainer.learner.optimizer.state


def test_a_learning_rate_far_too_high_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^the (loss|gradient's norm) became (nan|inf) at step \d \(epoch 1\)"
    ) as error:
        loop.fit(tiny(optim__lr=1e20, checkpoint_minutes=0.0), tmp_path / "run")
    assert "--optim.lr than 1e+20" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_wrong_numbers_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--optim\.accumulate is 0; it must be 1 or more$"):
        loop.fit(tiny(optim__accumulate=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- folders of photographs


def photographs(root: Path, *, train: int = 20, val: int = 10, damaged: tuple[str, ...] = ()) -> Path:
    """Two classes of small JPEGs, `train` and `val` images each; the files named are cut in half."""
    for split, count in (("train", train), ("val", val)):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng(k).integers(shade - 30, shade + 30, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k:02d}.jpg")
    for path in damaged:
        file = root / path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return root


def of_photographs(root: Path, **changes: Any) -> Recipe:
    return tiny(data__source=str(root), data__img_size=8, data__batch_size=16, data__limit=None, **changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_named_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    bad = ("train/dark/03.jpg", "val/light/07.jpg")
    root = photographs(tmp_path / "data", damaged=bad)
    recipe = of_photographs(root, data__workers=workers, schedule__epochs=3)
    out = stopped(monkeypatch, tmp_path / "run", 5, recipe)
    loop.resume(out)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(said) == [f"left out: {name}" for name in bad], "once each, over three epochs and a resumption"
    assert read(out, "damaged.json") == list(bad)
    final = read(out, "final.json")
    assert (final["n"], final["damaged"]) == (19, [bad[1]])
    assert [row["n"] for row in final["per_class"]] == [10, 9]
    assert np.array(final["confusion"]).sum() == 19
    assert final["top1"] * 19 == pytest.approx(round(final["top1"] * 19))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["damaged"] for record in log] == [2, 2, 2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_many_damaged_files_stop_the_run(tmp_path: Path, split: str) -> None:
    bad = tuple(f"{split}/dark/{k:02d}.jpg" for k in range(4))
    root = photographs(tmp_path / "data", damaged=bad)
    with pytest.raises(UserError, match=r"^4 of 60 images of data are damaged, more than 5%; `vitrail doctor .*data`"):
        loop.fit(of_photographs(root), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_nothing_to_score_is_one_sentence(tmp_path: Path) -> None:
    root = photographs(tmp_path / "data", val=1, damaged=("val/dark/00.jpg", "val/light/00.jpg"))
    with pytest.raises(UserError, match=r"^none of the 2 images held out can be read; `vitrail doctor` says why$"):
        loop.fit(of_photographs(root), tmp_path / "run")


def test_a_class_that_train_lacks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = photographs(tmp_path / "data", train=3, val=2)
    (root / "val" / "light").rename(root / "val" / "lihgt")
    with pytest.raises(UserError, match="val has class 'lihgt', which train lacks"):
        loop.fit(of_photographs(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def drop_a_class(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "dusk")


def drop_an_image(root: Path) -> None:
    (root / "train" / "dark" / "05.jpg").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_a_class, r"^.*data no longer has the classes that .*run was started with; restore the data$"),
        (drop_an_image, r"^data has 39 images to train and had 40 when .*run was started, .*; restore the data, or"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], sentence: str
) -> None:
    root = photographs(tmp_path / "data")
    out = stopped(monkeypatch, tmp_path / "run", 1, of_photographs(root))
    change(root)
    with pytest.raises(UserError, match=sentence):
        loop.resume(out)


def test_a_run_is_not_scored_on_other_classes(plain: Path, tmp_path: Path) -> None:
    root = photographs(tmp_path / "data", train=2, val=1)
    with pytest.raises(UserError, match=r"^data has 2 classes and the model 10; score it on data with the classes"):
        evaluate(plain, str(root))


# ---------------------------------------------------------------------- several labels, a teacher, masked patches


@pytest.fixture(scope="module")
def lamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 dark pictures whose channels are lit as their labels say; some have none, some several."""
    home = tmp_path_factory.mktemp("lamps")
    colours, draw = ("red", "green", "blue"), np.random.default_rng(0)
    rows = ["path,labels,split"]
    for k in range(40):
        lit = [bool(k >> channel & 1) for channel in range(3)]
        pixels = draw.integers(0, 50, (8, 8, 3), dtype=np.uint8) + np.uint8(190) * np.array(lit, dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"{k}.png")
        said = "|".join(name for name, on in zip(colours, lit, strict=True) if on)
        rows.append(f"{k}.png,{said},{'train' if k < 24 else 'val'}")
    (home / "lamps.csv").write_text("\n".join(rows))
    return home / "lamps.csv"


LAMPS = {"data__img_size": 8, "data__batch_size": 8, "data__limit": None, "schedule__epochs": 5, "optim__lr": 5e-3}


def test_several_labels_from_training_to_prediction(lamps: Path, tmp_path: Path) -> None:
    still = {"augment__mixup": 0.0, "augment__cutmix": 0.0, "drop_path": 0.0, "ema": 0.5}
    out = loop.fit(tiny(data__source=str(lamps), **LAMPS, **still), tmp_path / "run")
    assert from_json((out / "recipe.json").read_text()).task == "multilabel"
    final = read(out, "final.json")
    assert (final["metric"], final["n"], final["split"]) == ("map", 16, "val")
    assert final["map"] > 0.95
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["val_map"] == pytest.approx(final["map"])
    assert evaluate(out)["loss"] == pytest.approx(final["loss"], abs=1e-6)
    dark, bright = predict(out, [lamps.parent / "0.png", lamps.parent / "7.png"], top=3)
    assert [each["probability"] > 0.5 for each in (*dark["top"], *bright["top"])] == [False] * 3 + [True] * 3
    assert "mean average precision" in write_report(out).read_text(encoding="utf-8")
    said = vitrail("eval", out, "--json").json()
    assert {key: said[key] for key in ("metric", "n", "map")} == {key: final[key] for key in ("metric", "n", "map")}
    tried = vitrail("train", lamps, "--recipe", "quickstart", "--out", tmp_path / "tried", "--smoke", "--json")
    assert tried.code == 0, tried.err
    assert tried.json()["metric"] == "map"


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_weights", "red=3,blue=0.5"), ("label_smoothing", 0.4), ("augment__cutmix", 0.0), ("optim__rho", 0.1)],
)
def test_parts_of_a_recipe_have_an_effect_on_several_labels(
    lamps: Path, tmp_path: Path, field: str, value: Any
) -> None:
    recipe = {"data__source": str(lamps), **LAMPS, "schedule__epochs": 2}
    out, other = loop.fit(tiny(**recipe), tmp_path / "one"), loop.fit(tiny(**recipe | {field: value}), tmp_path / "two")
    assert bits(out) != bits(other)


STILL = {"crop": "none", "flip": 0.0, "rotate": 0.0, "mixup": 0.0, "cutmix": 0.0}
PUPIL = {"data__limit": 48, "data__batch_size": 16, **{f"augment__{name}": value for name, value in STILL.items()}}
TEACHING: dict[str, dict[str, Any]] = {
    "hard": {},
    "hard, more": {"distill__alpha": 0.9},
    "soft": {"distill__kind": "soft"},
    "soft, warm": {"distill__kind": "soft", "distill__tau": 3.0},
    "token": {"model": "deit_tiny_distilled_patch16_224", "data__img_size": 16, "data__limit": 16},
    "other images": {"augment__flip": 0.5},
}


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bits(loop.fit(tiny(**PUPIL), tmp_path_factory.mktemp("untaught") / "run"))


@pytest.mark.parametrize("way", TEACHING)
def test_a_pupil_goes_on_with_what_its_teacher_has_said(
    plain: Path, untaught: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    recipe = tiny(**PUPIL | {"distill__teacher": str(plain)} | TEACHING[way])
    straight = loop.fit(recipe, tmp_path / "straight")
    assert bits(straight) != untaught
    ways = [name for name in TEACHING if name != "token"]
    if way in ways[1:]:
        before = ways[ways.index(way) - 1]
        other = loop.fit(tiny(**PUPIL | {"distill__teacher": str(plain)} | TEACHING[before]), tmp_path / "other")
        assert bits(other) != bits(straight)
    kept = way != "other images"
    assert (straight / "teacher.safetensors").exists() == kept
    out = stopped(monkeypatch, tmp_path / "run", 1, recipe)
    asked: list[int] = []
    ask = Teacher.__call__

    def noted(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return ask(teacher, images)

    monkeypatch.setattr(Teacher, "__call__", noted)
    loop.resume(out)
    assert bits(out) == bits(straight)
    assert bool(asked) != kept
    assert evaluate(out)["loss"] == pytest.approx(read(out, "final.json")["loss"], abs=1e-6)


FEW = ["--data.limit", 48, "--data.batch-size", 16, "--data.workers", 0, "--schedule.epochs", 2]


def test_masked_patches_then_classes(tmp_path: Path) -> None:
    said = vitrail("train", "digits", *FEW, "--task", "masked_patches", "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    final = read(tmp_path / "run", "final.json")
    assert final["metric"] == "patch_accuracy"
    score = vitrail("eval", tmp_path / "run", "--json").json()
    assert {key: score[key] for key in ("n", "patches", "patch_accuracy")} == {
        key: final[key] for key in ("n", "patches", "patch_accuracy")
    }
    assert score["loss"] == pytest.approx(final["loss"], abs=1e-6)
    first = tmp_path / "run" / "model.safetensors"
    words = ["--initial-checkpoint", first, "--head-bias", "0", "--optim.lr", "1e-9", "--out", tmp_path / "tuned"]
    said = vitrail("train", "digits", *FEW, *words, "--json")
    assert said.code == 0, said.err
    assert said.json()["metric"] == "top1"
    assert said.json()["loss"] == pytest.approx(math.log(10), abs=1e-4), "the head starts from 0"
    before, after = load_file(first), weights(tmp_path / "tuned")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], rtol=0, atol=1e-6) for key in before if "head" not in key)
    random = build(replace(load(tmp_path / "tuned").recipe, initial_checkpoint=""), 10).state_dict()
    assert any(not torch.allclose(random[key], after[key], atol=1e-4) for key in before if "head" not in key)
