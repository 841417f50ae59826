"""Many processes make the same run as one: the same losses, the same files, and a clear end where one of them dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import finish, start, together
from safetensors.torch import load_file

TINY = ["train", "digits", "--model", "vit_pico_patch2_8", "--label-smoothing", "0.1", "--drop-path", "0"]
TINY += ["--data.limit", "120", "--data.batch-size", "24", "--data.workers", "0"]
TINY += ["--augment.crop", "padded", "--augment.crop-padding", "1", "--augment.flip", "0"]
TINY += ["--augment.rand-augment", "0", "--augment.erasing", "0"]
TINY += ["--schedule.epochs", "2", "--schedule.warmup-epochs", "1", "--optim.lr", "1e-3"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path, rtol: float = 1e-5) -> None:
    """Losses and scores of all epochs, and the weights within rounding."""
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=rtol)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=rtol)
        metric = f"val_{a['metric']}"
        assert a[metric] == pytest.approx(b[metric], abs=1e-9)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=2e-4, msg=name)


WAYS = {
    "plain": [],
    "mixed, averaged": ["--augment.mixup", "0.4", "--augment.cutmix", "1", "--ema", "0.9"],
    "accumulated": ["--optim.accumulate", "3", "--optim.clip-grad", "0.5"],
    "SAM": ["--optim.rho", "0.1", "--optim.accumulate", "2"],
    "repeated": ["--data.repeats", "3", "--data.batch-size", "23"],
    "balanced, sgd": ["--data.balanced", "--optim.name", "sgd", "--class-weights", "auto"],
    "frozen first": ["--schedule.frozen-epochs", "1", "--optim.head-lr", "3", "--optim.layer-decay", "0.8"],
    "masked patches": ["--task", "masked_patches"],
}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_make_the_run_of_one(way: str, tmp_path: Path) -> None:
    words = [*TINY, *WAYS[way], "--out"]
    together(1, tmp_path, [*words, "one"])
    said = together(2, tmp_path, [*words, "two"])
    assert_same_run(tmp_path / "one", tmp_path / "two")
    final = [json.loads((tmp_path / name / "final.json").read_text()) for name in ("one", "two")]
    assert final[0]["n"] == final[1]["n"], "no image is counted twice"
    assert "2 processes x" in said[0]
    assert said[1].strip() == "", "one process speaks"
    assert sorted(path.name for path in (tmp_path / "one").iterdir() if "events" not in path.name) == sorted(
        path.name for path in (tmp_path / "two").iterdir() if "events" not in path.name
    )


def test_shards_make_the_run_of_one(tmp_path: Path) -> None:
    words = [*TINY, "--ema", "0.9", "--optim.clip-grad", "1", "--optim.accumulate", "2", "--out"]
    together(1, tmp_path, [*words, "one"])
    together(2, tmp_path, [*words, "two", "--sharded"])
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_stopped_run_goes_on_with_another_number_of_processes(tmp_path: Path, sharded: bool, number: int) -> None:
    words = [*TINY, "--ema", "0.9", "--out"]
    together(1, tmp_path, [*words, "one"])
    words = [*words, "two", "--checkpoint-minutes", "0", *(["--sharded"] if sharded else [])]
    started = start(2, tmp_path, words)
    folder = tmp_path / "two" / "checkpoints"
    wait_for(lambda: any(folder.glob("step-*[3-9]")))
    for process in started:
        os.kill(process.pid or 0, signal.SIGTERM)
    codes = finish(started)
    assert codes in ([143, 143], [0, 0]), (tmp_path / "0.txt").read_text()
    if codes == [143, 143]:
        from vitrail.run import load

        assert "unfinished" in load(tmp_path / "two").weights  # by this one process
    together(number, tmp_path, ["train", "--resume", "two"])
    assert_same_run(tmp_path / "one", tmp_path / "two")


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_damaged_files_are_said_once(tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 7)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    (tmp_path / "photos" / "train" / "cat" / "7.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "val" / "dog" / "3.png").write_bytes(b"no picture")
    words = [*TINY, "--data.img-size", "8", "--out", "run"]
    words[1] = "photos"
    said = "".join(together(2, tmp_path, words))
    assert said.count("left out: ") == 2
    assert len(json.loads((tmp_path / "run" / "damaged.json").read_text())) == 2
    assert json.loads((tmp_path / "run" / "final.json").read_text())["n"] == 13


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    processes = start(2, tmp_path, ["train", "digist", "--out", "run"])
    assert finish(processes) == [1, 1]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert "digist" in said[0]
    assert said[1] == ""
    processes = start(2, tmp_path, [*TINY, "--data.batch-size", "1", "--out", "run"])
    assert finish(processes) == [1, 1]
    assert "cannot be shared by 2 processes" in (tmp_path / "0.txt").read_text()


# ---------------------------------------------------------------------- through the command line's own launcher


def launch(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitrail", *TINY, "--processes", "2", "--out", "run", *words]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train, in the order of their numbers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        rank = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if parent == process.pid and rank:
            found[rank[0]] = int(path.parent.name)
    return [found[rank] for rank in sorted(found)]


LONG = ("--schedule.epochs", "400", "--checkpoint-minutes", "0.01")


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_process_ends_all_and_is_named(tmp_path: Path, restarts: int) -> None:
    epochs = ("--schedule.epochs", "6") if restarts else ()
    process = launch(tmp_path, *LONG, *epochs, "--max-restarts", str(restarts))
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
    victim = children(process)[1]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    named = f"process 1 of 2 (pid {victim}) was killed by SIGKILL"
    assert named in err
    assert "Traceback" not in err
    if restarts:
        assert process.returncode == 0, err
        assert f"{named}; restart 1 of 1" in err
        assert "resumed at step" in err
        assert (tmp_path / "run" / "final.json").exists()
    else:
        assert time.monotonic() - began < 60
        assert process.returncode == 1
        assert err.rstrip().endswith("--resume run --processes 2` goes on")
        assert not [pid for pid in [victim, *children(process)] if Path(f"/proc/{pid}").exists()]
    assert out == ""


def test_the_launcher_passes_a_signal_on(tmp_path: Path) -> None:
    process = launch(tmp_path, *LONG)
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*")))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert time.monotonic() - began < 10
    assert len(re.findall(r"stopped at step \d+, saved run/checkpoints/step-\d+; --resume run goes on", err)) == 1, err
    assert "Traceback" not in err


def test_torchrun_itself(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vitrail", *TINY, "--json"]
    done = subprocess.run(
        [sys.executable, *command, "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "run", "one process prints"
