"""Runs that survive: stopped or killed at any moment, they end with the bits of a run that nothing happened to."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kills import RESUME, TRAIN, finish, kill, launch, outcome, prove, said, saving, steps, wait_for
from tiny_runs import bits, distance, stopped, stopping, tiny, weights

from vitrail.data.loader import Batch
from vitrail.errors import Interrupted, UserError
from vitrail.recipe import from_json, to_json
from vitrail.run import build, load
from vitrail.training import loop

# ---------------------------------------------------------------------- in this process


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny()`."""
    return loop.fit(tiny(), tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGTERM)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopping(patched, step, number)
        with pytest.raises(
            Interrupted, match=rf"^stopped at step {step}, saved .*step-0000000{step}; --resume"
        ) as stop:
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


def test_a_signal_that_ends_the_loader_s_processes_first(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(loop.Loader):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            if epoch == 1:
                signal.raise_signal(signal.SIGTERM)
                for worker in multiprocessing.active_children():
                    worker.terminate()
            return super().epoch(epoch, start)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "Loader", Ending)
        with pytest.raises(Interrupted, match=r"^stopped at step [34], saved"):  # 4: a batch had been read ahead
            loop.fit(tiny(data__workers=2), out)
    loop.resume(out)
    assert bits(out) == bits(plain)


def test_a_finished_run_is_left_as_it_is(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    assert loop.resume(plain) == plain
    assert "is finished; nothing is left to train" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"is not a run folder: it has no recipe\.json$"):
            loop.resume(folder)


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
    with pytest.raises(
        UserError, match=r"model.safetensors is damaged .*; delete it, and `vitrail train --resume .*run`"
    ):
        load(out)
    (out / "model.safetensors").unlink()
    loop.resume(out)
    assert bits(out) == bits(plain)


# ---------------------------------------------------------------------- in processes of their own


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    finish(folder, [*TRAIN, "--schedule.epochs", "4"])
    return folder


def test_a_run_killed_twice_ends_with_the_same_bits(straight: Path, tmp_path: Path) -> None:
    process = launch(tmp_path, [*TRAIN, "--schedule.epochs", "4"])
    wait_for(process, lambda: steps(tmp_path) >= 4)
    kill(process)
    process = launch(tmp_path, RESUME)
    wait_for(process, lambda: steps(tmp_path) >= 8 and saving(tmp_path))
    kill(process)
    assert not (tmp_path / "run" / "final.json").exists()
    finish(tmp_path, RESUME)
    assert outcome(tmp_path) == outcome(straight)
    assert outcome(straight)["checkpoints"] == ["step-00000011", "step-00000012"]


@pytest.mark.parametrize(
    ("number", "code", "workers", "whole_group"),
    [
        (signal.SIGINT, 130, 0, False),
        (signal.SIGTERM, 143, 0, False),
        (signal.SIGTERM, 143, 2, True),
    ],
    ids=["ctrl-c", "sigterm", "sigterm to its workers too"],
)
def test_a_signal_saves_and_names_the_way_on(
    straight: Path, tmp_path: Path, number: int, code: int, workers: int, whole_group: bool
) -> None:
    settings = ["--schedule.epochs", "4", "--data.workers", str(workers), "--checkpoint-minutes", "100"]
    process = launch(tmp_path, [*TRAIN, *settings])
    log = tmp_path / "run" / "log.jsonl"
    wait_for(process, lambda: log.exists() and log.stat().st_size > 0)
    assert process.pid
    (os.killpg if whole_group else os.kill)(process.pid, number)
    asked = time.monotonic()
    process.join(60)
    assert time.monotonic() - asked < 10
    assert process.exitcode == code, said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    last = said(tmp_path).splitlines()[-1]
    assert last.startswith("vitrail: stopped at step ")
    assert last.endswith("; --resume run goes on")
    assert steps(tmp_path) >= 3
    assert f"stopped at step {steps(tmp_path)}," in last
    finish(tmp_path, RESUME)
    assert outcome(tmp_path)["weights"] == outcome(straight)["weights"]
    assert outcome(tmp_path)["log"] == outcome(straight)["log"]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system has no /proc, which names the children")
def test_a_dead_loader_process_is_named(straight: Path, tmp_path: Path) -> None:
    process = launch(tmp_path, [*TRAIN, "--schedule.epochs", "4", "--data.workers", "2"])
    wait_for(process, lambda: steps(tmp_path) >= 4)
    assert process.pid
    dead = children(process.pid)[0]
    began = time.monotonic()
    os.kill(dead, signal.SIGKILL)
    process.join(60)
    assert time.monotonic() - began < 60
    assert process.exitcode == 1, said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    last = said(tmp_path).splitlines()[-1]
    assert last.startswith("vitrail: ")
    assert f"pid {dead}" in last
    assert "SIGKILL" in last
    assert "--resume" in last
    finish(tmp_path, RESUME)
    assert outcome(tmp_path)["weights"] == outcome(straight)["weights"]
    assert outcome(tmp_path)["state"] == outcome(straight)["state"]


def test_two_processes_do_not_train_one_run(straight: Path, tmp_path: Path) -> None:
    first = launch(tmp_path, [*TRAIN, "--schedule.epochs", "4"])
    wait_for(first, lambda: steps(tmp_path) >= 1)
    second = launch(tmp_path, RESUME)
    second.join(60)
    assert second.exitcode == 1, said(tmp_path)
    first.join(60)
    assert first.exitcode == 0, said(tmp_path)
    refused = [line for line in said(tmp_path).splitlines() if line.startswith("vitrail: ")]
    assert len(refused) == 1
    assert refused[0].startswith(f"vitrail: run is being trained by process {first.pid} on ")
    assert outcome(tmp_path) == outcome(straight)
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*TRAIN, "--optim.lr", "1e20"], "vitrail: the loss became nan at step"),
        (["train", "nowhere", "--out", "run"], "vitrail: 'nowhere' is no data source"),
        (["train", "--resume", "run"], "vitrail: run is not a run folder"),
        (["train", "--out", "/proc/run", "--data.limit", "20"], "vitrail: cannot make the folder /proc/run"),
    ],
)
def test_what_is_wrong_is_the_last_line_and_exit_code_1(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    process = launch(tmp_path, arguments)
    process.join(60)
    assert process.exitcode == 1, said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert said(tmp_path).splitlines()[-1].startswith(sentence)


@pytest.mark.slow
def test_two_hundred_kills_cost_nothing(tmp_path: Path) -> None:
    counts = prove(tmp_path, kills=200, inside=50)  # raises at the first bit that differs
    print(counts)
    assert int(counts.split()[0]) >= 200
