"""Many processes make the same run as one: the same losses, the same files, and a clear end where one of them dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import finish, start, together
from safetensors.torch import load_file

from vitrail import checkpoint
from vitrail.training.evaluate import evaluate

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


Alone = Callable[[list[str]], Path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The run that one process makes of some words; made once."""
    made: dict[str, Path] = {}

    def run(words: list[str]) -> Path:
        key = " ".join(words)
        if key not in made:
            folder = tmp_path_factory.mktemp("alone")
            together(1, folder, [*words, "--out", "one"])
            made[key] = folder / "one"
        return made[key]

    return run


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_make_the_run_of_one(way: str, tmp_path: Path, alone: Alone) -> None:
    words = [*TINY, *WAYS[way]]
    one = alone(words)
    said = together(2, tmp_path, [*words, "--out", "two"])
    assert_same_run(one, tmp_path / "two")
    final = [json.loads((folder / "final.json").read_text()) for folder in (one, tmp_path / "two")]
    assert final[0]["n"] == final[1]["n"], "no image is counted twice"
    assert "2 processes x" in said[0]
    assert said[1].strip() == "", "one process speaks"
    assert sorted(path.name for path in one.iterdir() if "events" not in path.name) == sorted(
        path.name for path in (tmp_path / "two").iterdir() if "events" not in path.name
    )


def test_shards_make_the_run_of_one(tmp_path: Path, alone: Alone) -> None:
    words = [*TINY, "--ema", "0.9", "--optim.clip-grad", "1", "--optim.accumulate", "2"]
    one = alone(words)
    together(2, tmp_path, [*words, "--out", "two", "--sharded"])
    assert_same_run(one, tmp_path / "two")


UNEVEN = ["--data.limit", "13", "--data.batch-size", "11", "--optim.accumulate", "4"]


@pytest.mark.parametrize("task", ["classify", "masked_patches"])
def test_three_processes_with_shares_that_differ(task: str, tmp_path: Path, alone: Alone) -> None:
    """11 images are 4, 4 and 3, in 4 parts; of the 13 held out the last 2 leave a process without any. With shards all
    must take part in every pass all the same."""
    words = [*TINY, *UNEVEN, "--task", task]
    one = alone(words)
    together(3, tmp_path, [*words, "--sharded", "--out", "three"])
    assert_same_run(one, tmp_path / "three")
    assert json.loads((tmp_path / "three" / "final.json").read_text())["n"] == 13


HALF = ["--precision", "fp16", "--optim.clip-grad", "1"]
STILL = ["--augment.crop", "none", "--augment.flip", "0"]


@pytest.mark.parametrize(
    "way",
    [
        ["--distill.kind", "soft", "--distill.tau", "2", "--sharded"],
        ["--model", "deit_tiny_distilled_patch16_224", "--data.img-size", "16", *STILL],
    ],
    ids=["soft, sharded", "token, kept answers"],
)
def test_many_pupils_of_one_teacher(way: list[str], tmp_path: Path, alone: Alone) -> None:
    words = [*TINY, "--data.limit", "48", "--distill.teacher", str(alone([*TINY, *WAYS["plain"]])), *way]
    one = alone([word for word in words if word != "--sharded"])
    together(2, tmp_path, [*words, "--out", "two"])
    assert_same_run(one, tmp_path / "two", rtol=1e-4)
    assert (one / "teacher.safetensors").exists() == (tmp_path / "two" / "teacher.safetensors").exists()


def test_half_precision(tmp_path: Path, alone: Alone) -> None:
    words = [*TINY, *HALF]
    one, two = alone(words), tmp_path / "two"
    together(2, tmp_path, [*words, "--out", "two"])
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-2)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=2e-2)


def test_batch_norm_has_one_memory(tmp_path: Path, alone: Alone) -> None:
    """On CPUs each process normalises with its own share, so the run is another one than that of one process; but all
    processes score the model that is saved, sharded or not."""
    words = [*TINY, "--model", "convmixer_128_4_ks3_p4", "--data.img-size", "8", "--data.limit", "48"]
    words += ["--data.batch-size", "15", "--ema", "0.9"]
    one, two, sharded = alone(words), tmp_path / "two", tmp_path / "sharded"
    together(2, tmp_path, [*words, "--out", "two"])
    together(2, tmp_path, [*words, "--out", "sharded", "--sharded"])
    assert_same_run(two, sharded)
    final = json.loads((two / "final.json").read_text())
    assert evaluate(two)["loss"] == pytest.approx(final["loss"], rel=1e-6)
    means = [load_file(folder / "model.safetensors") for folder in (one, two)]
    names = [name for name in means[0] if name.endswith("running_mean")]
    assert names
    for name in names:
        torch.testing.assert_close(means[0][name], means[1][name], rtol=0.3, atol=0.03, msg=name)
    assert lines(one)[-1]["train_loss"] != pytest.approx(lines(two)[-1]["train_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (3, ["--ema", "0.9"]),
        (1, ["--sharded", "--ema", "0.9", *WAYS["masked patches"]]),
        (3, ["--sharded", *WAYS["frozen first"]]),
        (2, ["--sharded", *HALF]),
    ],
    ids=["3", "1 sharded, masked patches", "3 sharded, frozen first", "2 sharded, fp16"],
)
def test_a_stopped_run_goes_on_with_another_number_of_processes(
    number: int, way: list[str], tmp_path: Path, alone: Alone
) -> None:
    words = [*TINY, *way]
    one, two = alone([word for word in words if word != "--sharded"]), tmp_path / "two"
    started = start(2, tmp_path, [*words, "--out", "two", "--checkpoint-minutes", "0"])
    wait_for(lambda: any((two / "checkpoints").glob("step-*[3-9]")))
    for process in started:
        os.kill(process.pid or 0, signal.SIGTERM)
    codes = finish(started)
    assert codes in ([143, 143], [0, 0]), (tmp_path / "0.txt").read_text()
    if codes == [143, 143]:
        from vitrail.run import load

        assert "unfinished" in load(two).weights  # by this one process
    together(number, tmp_path, ["train", "--resume", "two"])
    if way[-len(HALF) :] != HALF:
        assert_same_run(one, two)
    assert scaler(one) == scaler(two)


def scaler(run: Path) -> dict[str, Any]:
    """That of the last checkpoint."""
    state = checkpoint.load(run / "checkpoints")
    assert state is not None
    found: dict[str, Any] = state["scaler"]
    return found


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
    for words, sentence in (
        (["--data.batch-size", "1"], "cannot be shared by 2 processes"),
        (["--optim.lr", "1e20"], "the loss became nan at step 1"),
    ):
        processes = start(2, tmp_path, [*TINY, *words, "--out", "run"])
        assert finish(processes) == [1, 1]
        everything = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
        assert everything.count(sentence) == 1, everything
        assert "Traceback" not in everything


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


def test_a_killed_process_ends_all_and_is_named(tmp_path: Path) -> None:
    """It is started again once, and goes on from the last checkpoint; killed again, that is the end."""
    process = launch(tmp_path, *LONG, "--max-restarts", "1")
    folder = tmp_path / "run" / "checkpoints"
    wait_for(lambda: any(folder.glob("step-*")))
    first = children(process)
    os.kill(first[1], signal.SIGKILL)
    wait_for(lambda: len(children(process)) == 2 and not {*children(process)} & {*first})
    kept = max(path.name for path in folder.glob("step-*"))
    wait_for(lambda: max(path.name for path in folder.glob("step-*")) > kept)
    second = children(process)
    began = time.monotonic()
    os.kill(second[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert f"process 1 of 2 (pid {first[1]}) was killed by SIGKILL; restart 1 of 1" in err
    assert f"resumed at step {int(kept[5:])}" in err
    assert f"process 0 of 2 (pid {second[0]}) was killed by SIGKILL; the others were stopped;" in err
    assert err.rstrip().endswith("--resume run --processes 2` goes on")
    assert process.returncode == 1
    assert "Traceback" not in err
    assert not [pid for pid in (*first, *second) if Path(f"/proc/{pid}").exists()]
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
