"""Runs in processes of their own, and the proof that kill -9 costs them nothing.

Each process is forked from a server that has torch imported, so that starting one takes no seconds; it then does what
`vitrail ARGUMENTS` does, up to its exit code. Kills are SIGKILL from outside, which no code of the child sees.

    python tests/kills.py 200 50      200 kills, 50 of them inside a save; prints one line of counts
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from processes import PROCESSES

# all that is random is on, and a checkpoint is written after every step
SETTINGS = (
    "--data.limit 200 --data.batch-size 64 --optim.accumulate 2 --augment.mixup 0.2 --augment.cutmix 1 "
    "--drop-path 0.1 --ema 0.99 --schedule.warmup-epochs 1 --checkpoint-minutes 0"
)
TRAIN = ["train", "--out", "run", *SETTINGS.split()]
RESUME = ["train", "--resume", "run"]
PROOF = [*TRAIN, "--schedule.epochs", "3", "--data.workers", "2", "--data.batch-size", "32"]
LAST = 18  # step of that run: 6 an epoch


def vitrail(folder: Path, arguments: list[str]) -> None:
    """What `vitrail ARGUMENTS` does, called in a process of its own."""
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
    assert process.exitcode == 0, said(folder)


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def wait_for(process: BaseProcess, condition: Callable[[], bool]) -> None:
    """Until it is so, or the process has ended."""
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on what happened to it on the way."""
    run = folder / "run"
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "final": (run / "final.json").read_bytes(),
        "recipe": (run / "recipe.json").read_bytes(),
        "log": timeless(records),
        "checkpoints": [path.name for path in checkpoints],
        "state": timeless(torch.load(checkpoints[-1] / "state.pt", weights_only=True)),
        # the report page, which is no part of the run, may have been cut off
        "litter": [path.name for path in run.rglob(".*") if not path.name.startswith(".report.html")],
    }


def timeless(value: Any) -> Any:
    """A value whose == compares tensors bit by bit and leaves out how fast it went."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "images_per_s"}
    return [timeless(one) for one in value] if isinstance(value, list | tuple) else value


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written just now, or was when its process died."""
    return any((folder / "run" / "checkpoints").glob(".step-*"))


def steps(folder: Path) -> int:
    """Of the newest checkpoint."""
    found = sorted((folder / "run" / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


# ---------------------------------------------------------------------- the proof


def prove(folder: Path, kills: int, inside: int) -> str:
    """Kill runs at random moments, from their first instant to their last, resume each until it gets to its end, and
    compare everything with a run that nothing happened to. One line of counts; AssertionError at the first bit."""
    draw, began = random.Random(0), time.monotonic()
    finish(folder / "warm", PROOF)  # the server is started, the data is in memory
    process, start = launch(folder / "straight", PROOF), time.monotonic()
    wait_for(process, lambda: finished(folder / "straight"))
    duration = time.monotonic() - start
    process.join()
    expected = outcome(folder / "straight")
    assert expected["checkpoints"][-1] == f"step-{LAST:08d}"
    where: Counter[str] = Counter()
    runs = most = 0
    while where.total() < kills or where["inside a save"] < inside:
        run, before, fruitless = folder / str(runs), where.total(), 0
        while True:
            step, patience = steps(run), duration * 2**fruitless  # the machine may have become slower
            moment = killed_once(run, draw, patience, where["inside a save"] < inside)
            if moment == "finished":
                break
            where[moment] += 1
            fruitless = 0 if steps(run) > step else fruitless + 1
        result = outcome(run)
        other = [part for part in expected if result[part] != expected[part]]
        assert not other, f"run {run}, killed {where.total() - before} times: {other} differ"
        most = max(most, where.total() - before)
        shutil.rmtree(run)
        runs += 1
    took = time.monotonic() - began
    counts = ", ".join(f"{count} {moment}" for moment, count in where.most_common())
    return (
        f"{where.total()} kills of {runs} runs (at most {most} of one): {counts}; every run ended with the same bits; "
        f"{took:.0f} s, {took / where.total():.2f} s a kill; a run of {LAST} steps takes {duration:.2f} s"
    )


def killed_once(folder: Path, draw: random.Random, duration: float, aim: bool) -> str:
    """Start or resume the run, kill it at a random moment and say where that was; "finished" if it was faster. Every
    other time, where `aim`, the next save is waited for."""
    # a run killed before it had a recipe is one that never began
    process = launch(folder, RESUME if (folder / "run" / "recipe.json").exists() else PROOF)
    step = steps(folder)
    end = time.monotonic() + draw.uniform(0, duration * (1 - 0.8 * step / LAST))  # starting takes a fifth of it
    wait_for(process, lambda: time.monotonic() > end or finished(folder))
    if aim and draw.random() < 0.7:
        wait_for(process, lambda: saving(folder) or finished(folder))
    process.kill()  # of one that has finished: its report page is not what this is about
    process.join()
    if finished(folder):
        return "finished"
    assert process.exitcode == -signal.SIGKILL, said(folder)
    if saving(folder):
        return "inside a save"
    if not (folder / "run" / "recipe.json").exists():
        return "before there was a recipe"
    if steps(folder) == LAST:
        return "after the last step"
    return "while starting or resuming" if steps(folder) == step else "while training"


def finished(folder: Path) -> bool:
    return (folder / "run" / "final.json").exists()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(prove(Path(scratch), int(sys.argv[1]), int(sys.argv[2])))
