"""What one run promises: same seed same bits, every part of the recipe at work, one sentence a mistake, damaged files
named and in no denominator."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import bits, distance, read, stopped, tiny, weights

from vitrail import checkpoint
from vitrail.errors import UserError
from vitrail.recipe import Recipe, from_json
from vitrail.run import build, load, open_data
from vitrail.training import loop
from vitrail.training.evaluate import evaluate


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


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.4},
        {"augment__mixup": 0.0},
        {"augment__cutmix": 0.0},
        {"augment__erasing": 1.0},
        {"drop_path": 0.5},
        {"precision": "bf16"},
        {"optim__name": "sgd"},
        {"ema": None},
        {"ema": 0.1},
    ],
    ids=lambda changes: "_".join(changes),
)
def test_every_part_of_a_recipe_has_an_effect(plain: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    out = loop.fit(tiny(**changes), tmp_path / "run")
    assert bits(out) != bits(plain)
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in weights(out).values())
    assert math.isfinite(read(out, "final.json")["loss"])


def test_training_learns(tmp_path: Path) -> None:
    recipe = tiny(
        data__limit=200, schedule__epochs=12, ema=0.9, optim__lr=4e-3, augment__mixup=0.0, augment__cutmix=0.0
    )
    assert read(loop.fit(recipe, tmp_path / "run"), "final.json")["top1"] > 0.3, "chance is 0.1"


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
