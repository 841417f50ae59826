"""The rules of training (groups, schedule, average), and what one run promises: same seed same bits, one sentence a
mistake, damaged files named and in no denominator."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vitrail import checkpoint
from vitrail.errors import Interrupted, UserError
from vitrail.models import create_model
from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule, from_json, to_json
from vitrail.recipes import find_recipe
from vitrail.run import build, load
from vitrail.training import loop
from vitrail.training.evaluate import evaluate
from vitrail.training.limits import RULES, check_numbers
from vitrail.training.optim import learning_rate, moving_average, optimizer, parameter_groups, scaled_for_batch


def tiny(**changes: Any) -> Recipe:
    """96 digits, two epochs of three steps; `data__limit=64` changes recipe.data.limit."""
    recipe = Recipe(
        data=Data(limit=96, batch_size=32, workers=0),
        augment=Augment(crop="padded", crop_padding=1, rotate=10.0),
        optim=Optim(lr=2e-3, clip_grad=1.0),
        schedule=Schedule(epochs=2, warmup_epochs=1.0),
        label_smoothing=0.1,
        ema=0.99,
    )
    for path, value in changes.items():
        part, _, field = path.rpartition("__")
        recipe = replace(recipe, **({part: replace(getattr(recipe, part), **{field: value})} if part else {field: value}))
    return recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights."""
    return math.sqrt(sum(float(((a[key].double() - b[key].double()) ** 2).sum()) for key in a))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny()`."""
    return loop.fit(tiny(), tmp_path_factory.mktemp("plain") / "run")


# ---------------------------------------------------------------------- the optimiser's rules


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("deit_tiny_distilled_patch16_224", {"cls_token", "dist_token", "pos_embed"}),
        ("vit_base_patch16_siglip_224", {"pos_embed", "attn_pool.latent"}),
        ("resnet18", set()),
    ],
)
def test_norms_biases_tokens_and_positions_do_not_decay(name: str, tokens: set[str]) -> None:
    with torch.device("meta"):
        model = create_model(name)
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    together = [id(parameter) for parameter in decayed["params"] + kept["params"]]
    assert sorted(together) == sorted(names), "every parameter once"
    spared = {names[id(parameter)] for parameter in kept["params"]}
    assert tokens <= spared
    assert all(name.endswith(".bias") or "norm" in name or name in tokens or "bn" in name or "downsample.1" in name
               for name in spared)  # fmt: skip
    assert not any(name.endswith("bias") or "norm" in name for name in set(names.values()) - spared)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])


def test_frozen_parameters_are_not_optimised() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [parameter.shape for group in groups for parameter in group["params"]] == [(2, 3), (2,)]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizer_is_the_recipes(name: Any, kind: type) -> None:
    made = optimizer(nn.Linear(2, 2), Optim(name=name, lr=0.25, weight_decay=0.5, betas=(0.8, 0.9)))
    assert type(made) is kind
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0]
    assert all(group["lr"] == 0.25 for group in made.param_groups)
    assert name == "sgd" or made.param_groups[0]["betas"] == (0.8, 0.9)
    assert name == "adamw" or (made.param_groups[0]["momentum"], made.param_groups[0]["nesterov"]) == (0.9, True)


def test_learning_rate_warms_up_peaks_and_ends_at_its_share() -> None:
    schedule = Schedule(epochs=10, warmup_epochs=2.0, min_lr=0.1)
    rates = [learning_rate(step, 5, 3.0, schedule) for step in range(51)]
    assert rates[:10] == pytest.approx([3.0 * (step + 1) / 11 for step in range(10)]), "first above 0, then straight"
    assert rates[10] == max(rates) == 3.0
    assert rates[30] == pytest.approx(3.0 * (0.1 + 0.9 / 2)), "halfway down the cosine"
    assert rates[50] == pytest.approx(0.3)
    assert learning_rate(0, 5, 3.0, Schedule(epochs=10, warmup_epochs=0)) == 3.0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 8), st.floats(0, 1))
def test_learning_rate_rises_then_falls_within_bounds(epochs: int, steps: int, warmup: float, least: float) -> None:
    schedule = Schedule(epochs=epochs, warmup_epochs=warmup, min_lr=least)
    rates = [learning_rate(step, steps, 2.0, schedule) for step in range(epochs * steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_lr_follows_the_batch_size_once() -> None:
    recipe = tiny(data__batch_size=256, optim__lr=1e-3, optim__lr_batch=64)
    scaled = scaled_for_batch(recipe)
    assert scaled.optim.lr == pytest.approx(4e-3)
    assert scaled_for_batch(scaled) == scaled
    assert scaled_for_batch(tiny()) == tiny()


def test_moving_average_is_its_closed_form() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = moving_average(model, 0.5)
    torch.manual_seed(0)
    expected = torch.zeros(2, 2)
    for t in range(12):
        value, mean = torch.randn(2, 2), torch.randn(2)
        with torch.no_grad():
            model[0].weight.copy_(value)
            model[1].running_mean.copy_(mean)  # type: ignore[operator, union-attr]
            model[1].num_batches_tracked.fill_(t)  # type: ignore[operator, union-attr]
        averaged.update_parameters(model)
        share = min(0.5, (1 + t) / (10 + t)) if t else 0.0
        expected = share * expected + (1 - share) * value
    assert share == 0.5, "the decay itself is reached"
    assert torch.allclose(averaged.module[0].weight, expected, atol=1e-6)
    assert int(averaged.module[1].num_batches_tracked) == 11
    assert not torch.equal(averaged.module[1].running_mean, mean), "buffers are averaged too"


# ---------------------------------------------------------------------- one update


def one_update(tmp_path: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after a run of a single SGD step over 32 images."""
    settings = {"optim__name": "sgd", "optim__lr": 0.1, "optim__weight_decay": 0.0, "optim__clip_grad": None}
    settings |= {"data__limit": 32, "schedule__epochs": 1, "schedule__warmup_epochs": 0.0, "ema": None}
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
    assert not [path for path in plain.rglob(".*")]


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
        {"augment__mixup": 0.8, "augment__cutmix": 1.0},
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
    recipe = tiny(data__limit=200, schedule__epochs=12, ema=0.9, optim__lr=4e-3)
    assert read(loop.fit(recipe, tmp_path / "run"), "final.json")["top1"] > 0.3, "chance is 0.1"


def test_the_moving_average_is_what_is_scored_and_saved(plain: Path) -> None:
    state = checkpoint.load(plain / "checkpoints")
    assert state is not None
    shared = weights(plain)
    assert all(torch.equal(shared[key], state["ema"][f"module.{key}"]) for key in shared)
    assert any(not torch.equal(shared[key], state["model"][key]) for key in shared)
    run = load(plain)
    assert evaluate(run)["loss"] == pytest.approx(read(plain, "final.json")["loss"], abs=1e-6)
    run.model.load_state_dict(state["model"])
    assert abs(evaluate(run)["loss"] - read(plain, "final.json")["loss"]) > 1e-3


# ---------------------------------------------------------------------- stop and go on


def stopping(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Have this process told to stop once `step` updates are done."""
    done = 0

    class Stopping(loop.Display):
        def step(self, epoch: int, loss: float, rate: float) -> None:
            nonlocal done
            done += 1
            if done == step:
                signal.raise_signal(number)
            super().step(epoch, loss, rate)

    monkeypatch.setattr(loop, "Display", Stopping)


def stopped(monkeypatch: pytest.MonkeyPatch, out: Path, step: int, recipe: Recipe) -> Path:
    """The folder of a run that was stopped after `step` updates."""
    with monkeypatch.context() as patched:
        stopping(patched, step)
        with pytest.raises(Interrupted):
            loop.fit(recipe, out)
    return out


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGTERM)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopping(patched, step, number)
        with pytest.raises(Interrupted, match=rf"^stopped at step {step}, saved .*step-0000000{step}; --resume") as stop:
            loop.fit(tiny(), out)
    assert stop.value.signum == number
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before
    assert load(out).weights == f"step {step} of {out}, unfinished"
    loop.resume(out)
    assert bits(out) == bits(plain)
    timeless = [
        [{**json.loads(line), "images_per_s": 0} for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, plain)
    ]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_left_as_it_is(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    assert loop.resume(plain) == plain
    assert "is finished; nothing is left to train" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


def test_a_folder_that_holds_a_run_is_not_taken(plain: Path) -> None:
    with pytest.raises(UserError, match=r"^.* already holds a run; continue it with --resume .*, or choose another"):
        loop.fit(tiny(), plain)


@pytest.mark.parametrize("where", ["file/run", "file", "/proc/run"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot make the folder .*; choose another --out$"):
        loop.fit(tiny(), tmp_path / where)


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"is not a run folder: it has no recipe\.json$"):
            loop.resume(folder)


def test_a_divergent_run_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped(monkeypatch, tmp_path / "run", 2, tiny(checkpoint_minutes=0.0))
    kept = {path.name: (path / "state.pt").read_bytes() for path in (out / "checkpoints").iterdir()}
    state = checkpoint.load(out / "checkpoints")
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    next(iter(state["model"].values())).fill_(math.nan)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "load", lambda _: state)
        with pytest.raises(UserError, match=r"^the loss became nan at step 2 \(epoch 1\), .* before that update; try"):
            loop.resume(out)
    assert {path.name: (path / "state.pt").read_bytes() for path in (out / "checkpoints").iterdir()} == kept
    loop.resume(out)
    assert (out / "final.json").exists()


def test_a_learning_rate_far_too_high_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the (loss|gradient's norm) became (nan|inf) at step \d \(epoch 1\)") as error:
        loop.fit(tiny(optim__lr=1e20, checkpoint_minutes=0.0), tmp_path / "run")
    assert "--optim.lr than 1e+20" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped(monkeypatch, tmp_path / "run", 2, tiny())
    recipe = from_json((out / "recipe.json").read_text())
    other = replace(recipe, model="vit_pico_patch4_32", data=replace(recipe.data, img_size=32))
    (out / "recipe.json").write_text(to_json(other))
    with pytest.raises(UserError, match=r"^the checkpoint in .* was written by another recipe.*Missing key") as error:
        loop.resume(out)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"are not those of vit_pico_patch4_32") as error:
        load(out)
    assert "\n" not in str(error.value)
    (out / "recipe.json").write_text(to_json(replace(recipe, optim=replace(recipe.optim, name="sgd"))))
    with pytest.raises(UserError, match=r"was written by another recipe .*its optimiser is not sgd"):
        loop.resume(out)
    (out / "recipe.json").write_text(to_json(recipe))
    loop.resume(out)
    assert (out / "final.json").exists()


def test_weights_that_a_run_started_from_may_be_gone(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(bits(plain))
    recipe = tiny(initial_checkpoint=str(start), optim__lr=1e-5)
    straight = loop.fit(recipe, tmp_path / "straight")
    random = build(load(plain).recipe, 10).state_dict()
    assert distance(weights(straight), weights(plain)) < 0.1 * distance(weights(straight), random)
    out = stopped(monkeypatch, tmp_path / "run", 4, recipe)
    start.unlink()
    loop.resume(out)
    assert bits(out) == bits(straight)


def test_damaged_weights_are_written_anew(plain: Path, tmp_path: Path) -> None:
    out = shutil.copytree(plain, tmp_path / "run")
    (out / "model.safetensors").write_bytes(bits(plain)[:1000])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*; delete it, and `vitrail train --resume .*run`"):
        load(out)
    (out / "model.safetensors").unlink()
    loop.resume(out)
    assert bits(out) == bits(plain)


# ---------------------------------------------------------------------- wrong numbers


@pytest.mark.parametrize("field", RULES)
def test_a_number_that_means_nothing_is_refused(field: str) -> None:
    check_numbers(tiny())
    value = attrgetter(field)(tiny())
    wrong = [(math.nan, 0.9), (0.9, 1.0)] if isinstance(value, tuple) else [math.nan, -1]
    for number in wrong:
        with pytest.raises(UserError, match=rf"^--{field.replace('_', '-')} is .*; it must be "):
            check_numbers(tiny(**{field.replace(".", "__"): number}))


@pytest.mark.parametrize("name", ["deit", "deit/small", "finetune", "quickstart", "scratch", "scratch/small_images"])
def test_published_recipes_have_numbers_that_mean_something(name: str) -> None:
    check_numbers(find_recipe(name))


def test_wrong_numbers_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--optim.accumulate is 0; it must be 1 or more$"):
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
    with pytest.raises(UserError, match="^none of the 2 images held out can be read; `vitrail doctor` says why$"):
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
    with pytest.raises(UserError, match="^data has 2 classes and the model 10; score it on data with the classes"):
        evaluate(plain, str(root))
