"""Runs that survive: stopped, refused or killed at any moment, they end with the same bits as if nothing had happened.

The killed ones are processes of their own. Each is forked from a server that has torch imported, so that starting one
takes no seconds; it then does what `vitrail ARGUMENTS` does, up to its exit code. Kills are SIGKILL from outside, which
no code of the child sees.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import bits, distance, stopped, stopping, tiny, weights

from vitrail.data.loader import Batch
from vitrail.errors import Interrupted, UserError
from vitrail.recipe import from_json, to_json
from vitrail.run import build, load
from vitrail.training import loop

PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = ["torch.utils.tensorboard", "torch._dynamo", "sklearn.datasets", "sklearn.metrics", "pytest"]
PROCESSES.set_forkserver_preload(["vitrail.verbs", "vitrail.commands", *LIBRARIES])
SETTINGS = "--data.limit 200 --data.batch-size 64 --augment.mixup 0.2 --drop-path 0.1 --checkpoint-minutes 0"
TRAIN = ["train", "--out", "run", *SETTINGS.split()]
RESUME = ["train", "--resume", "run"]


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
        with pytest.raises(Interrupted, match=r"^stopped at step 3, saved"):
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


def vitrail(folder: Path, arguments: list[str]) -> None:
    """What `vitrail ARGUMENTS` does, called in a process of its own."""
    import torch

    from vitrail.cli import main

    os.setsid()
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # this process has inherited forkserver
    sys.argv = ["vitrail", *arguments]
    main()


def launch(folder: Path, arguments: list[str]) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=vitrail, args=(folder, arguments))
    process.start()
    return process


def finish(folder: Path, arguments: list[str]) -> None:
    """Run to the end; it must be a good one."""
    process = launch(folder, arguments)
    process.join(120)
    assert process.exitcode == 0, (folder / "said.txt").read_text()


def wait_for(process: BaseProcess, condition: Callable[[], bool]) -> None:
    """Until it is so, or the process has ended."""
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on what happened to it on the way."""
    run = folder / "run"
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "final": (run / "final.json").read_bytes(),
        "recipe": (run / "recipe.json").read_bytes(),
        "log": [{key: value for key, value in record.items() if key != "images_per_s"} for record in records],
        "checkpoints": sorted(os.listdir(run / "checkpoints")),
        "litter": [path.name for path in run.rglob(".*")],
    }


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written just now, or was when its process died."""
    return any((folder / "run" / "checkpoints").glob(".step-*"))


def steps(folder: Path) -> int:
    """Of the newest checkpoint."""
    found = sorted((folder / "run" / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


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
    assert process.exitcode == -signal.SIGKILL
    process = launch(tmp_path, RESUME)
    wait_for(process, lambda: steps(tmp_path) >= 8 and saving(tmp_path))
    kill(process)
    assert process.exitcode == -signal.SIGKILL
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
    process.join(60)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("vitrail: stopped at step ")
    assert said.splitlines()[-1].endswith("; --resume run goes on")
    assert steps(tmp_path) >= 3
    assert f"stopped at step {steps(tmp_path)}," in said
    finish(tmp_path, RESUME)
    assert outcome(tmp_path)["weights"] == outcome(straight)["weights"]
    assert outcome(tmp_path)["log"] == outcome(straight)["log"]


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
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 1, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(sentence)


@pytest.mark.slow
def test_twenty_runs_killed_at_random_moments(tmp_path: Path) -> None:
    """After any step and a random while more, from the start-up to the final scores; every other one inside a save."""
    train = [*TRAIN, "--schedule.epochs", "10"]
    process = launch(tmp_path / "straight", train)
    wait_for(process, lambda: steps(tmp_path / "straight") > 0)
    began = time.monotonic()
    wait_for(process, lambda: steps(tmp_path / "straight") == 30)
    pace = (time.monotonic() - began) / 29
    process.join(120)
    expected = outcome(tmp_path / "straight")
    draw = random.Random(0)
    kills = {"before the first checkpoint": 0, "while training": 0, "inside a save": 0, "after the last step": 0}
    for number in range(20):
        folder = tmp_path / str(number)
        process = launch(folder, train)
        step = {0: 0, 2: 30}.get(number, draw.randint(1, 28))
        more = draw.uniform(0, pace)
        wait_for(process, lambda folder=folder, step=step: steps(folder) >= step)  # type: ignore[misc]
        time.sleep(more)
        if number % 2:
            wait_for(process, lambda folder=folder: saving(folder))  # type: ignore[misc]
        kill(process)
        assert process.exitcode == -signal.SIGKILL
        kills["inside a save" if saving(folder) else
              "before the first checkpoint" if steps(folder) == 0 else
              "after the last step" if steps(folder) == 30 else
              "while training"] += 1  # fmt: skip
        # a run killed before it had a recipe is one that never began
        finish(folder, RESUME if (folder / "run" / "recipe.json").exists() else train)
        assert outcome(folder) == expected
    print(f"{kills}; {1000 * pace:.0f} ms a step, its checkpoint included")
    assert kills["inside a save"] >= 5
    assert kills["before the first checkpoint"] >= 1
    assert kills["after the last step"] >= 1


@pytest.mark.slow
def test_a_run_killed_over_and_over_gets_to_its_end(tmp_path: Path) -> None:
    train = [*TRAIN, "--schedule.epochs", "10"]
    finish(tmp_path / "straight", train)
    folder = tmp_path / "killed"
    draw = random.Random(1)
    process = launch(folder, train)
    for _ in range(8):
        target = steps(folder) + draw.randint(1, 4)
        wait_for(process, lambda target=target: steps(folder) >= target)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.05))
        kill(process)
        process = launch(folder, RESUME)
    process.join(120)
    assert outcome(folder) == outcome(tmp_path / "straight")
