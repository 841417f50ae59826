"""Files and checkpoints are whole or not there: damage is found, a full disk costs nothing that was kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrail import checkpoint
from vitrail.errors import UserError
from vitrail.recipes import find_recipe
from vitrail.training import loop


def state(number: int) -> dict[str, Any]:
    return {"step": number, "model": {"w": torch.full((50,), float(number))}, "history": [{"epoch": number}]}


def number_of(loaded: dict[str, Any] | None) -> int:
    """Which `state` this is, all of it."""
    assert loaded is not None
    number: int = loaded["step"]
    assert torch.equal(loaded["model"]["w"], torch.full((50,), float(number)))
    assert loaded["history"] == [{"epoch": number}]
    return number


def saved(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        checkpoint.save(folder, number, state(number))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------------- whole files


def test_a_file_is_written_whole_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    before = os.umask(0o077)
    try:
        checkpoint.write_file(path, b"old")
        checkpoint.write_file(path, "ü")
    finally:
        os.umask(before)
    assert path.read_bytes() == "ü".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["weights.bin"]


@pytest.mark.parametrize("where", ["missing/a", "file/a", "/proc/a"])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match=r"^cannot write .*a: [A-Z][^;]*; free some space or choose another folder$"):
        checkpoint.write_file(tmp_path / where, "x")
    with pytest.raises(UserError, match=r"^cannot write the checkpoint .*there is no earlier checkpoint"):
        checkpoint.save(tmp_path / ("file" if where == "missing/a" else where), 1, state(1))
    assert names(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.write_file(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------------- checkpoints


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "none") is None
    saved(tmp_path, 1, 2, 3, 99_999_999, 100_000_000)  # nine digits: order is by number
    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert number_of(checkpoint.load(tmp_path)) == 100_000_000


def test_a_step_saved_again_replaces_itself(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    again = {**state(2), "history": "of the whole epoch"}
    checkpoint.save(tmp_path, 2, again)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert checkpoint.load(tmp_path)["history"] == "of the whole epoch"  # type: ignore[index]


def test_what_others_put_there_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001-mine")
    (tmp_path / ".notes.1").write_text("keep")
    saved(tmp_path, 2, 3)
    assert names(tmp_path) == [".notes.1", "step-00000001-mine", "step-00000002", "step-00000003"]
    assert number_of(checkpoint.load(tmp_path)) == 3


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_the_newest_is_found_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = saved(tmp_path / "c", 1, 2)
    file = folder / "step-00000002" / data.draw(st.sampled_from(["state.pt", "state.pt", "manifest.json"]))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "gone"]))
    caplog.clear()
    if kind == "flip":
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        file.unlink()
    number = number_of(checkpoint.load(folder))
    if kind != "flip" or file.name == "state.pt":
        assert number == 1
    if number == 1:  # a flipped bit of the manifest need not touch the digest
        assert "step-00000002 is damaged" in caplog.text
    else:
        assert not caplog.records


def test_after_a_damaged_one_the_run_keeps_two_whole_ones(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20)
    (tmp_path / "step-00000020" / "state.pt").write_bytes(b"")
    assert number_of(checkpoint.load(tmp_path)) == 10
    saved(tmp_path, 15)
    assert names(tmp_path) == ["step-00000010", "step-00000015"], "the damaged one would count as the newest"


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for name in names(tmp_path):
        (tmp_path / name / "state.pt").write_bytes(b"zeros")
    with pytest.raises(UserError, match=r"^every checkpoint in .* is damaged; train anew with another --out$"):
        checkpoint.load(tmp_path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, target = saved(tmp_path / "c", 1, 2), tmp_path / "done"
    file = folder / "step-00000002" / "state.pt"
    torch.save({"step": Malicious(target)}, file)
    manifest = {"step": 2, "bytes": 0, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / "step-00000002" / "manifest.json").write_text(json.dumps(manifest))
    assert number_of(checkpoint.load(folder)) == 1
    assert "holds something else than weights" in caplog.text
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the file is one that would run code"
    shutil.rmtree(folder / "step-00000001")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.load(folder)


class Killed(BaseException):
    """What no `except Exception` catches: as near to kill -9 as one process comes."""


@pytest.mark.parametrize("step", [3, 2], ids=["next step", "same step"])
def test_a_save_killed_anywhere_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = 0

    def dying(function: Callable[..., Any], last: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise Killed
            return function(*arguments, **options)

        return call

    found, last, finished = set(), 0, False
    while not finished:
        folder = saved(tmp_path / str(last), 1, 2)
        calls = 0
        with monkeypatch.context() as patched:
            for module, name in ((os, "replace"), (os, "fsync"), (os, "chmod"), (os, "mkdir"), (shutil, "rmtree")):
                patched.setattr(module, name, dying(getattr(module, name), last))
            try:
                checkpoint.save(folder, step, {**state(step), "again": True})
                finished = True
            except Killed:
                pass
        loaded = checkpoint.load(folder)
        found.add((number_of(loaded), "again" in loaded))  # type: ignore[operator]
        saved(folder, 4)
        assert not [name for name in names(folder) if name.startswith(".")], "litter of the killed save"
        last += 1
    assert last > 6
    expected = {(2, False), (step, True)}
    # between two renames the same step has none of its own name: then the one before it is used
    assert found == (expected if step == 3 else expected | {(1, False)})


# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """To the last byte."""
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_costs_no_earlier_checkpoint(small_disk: Path) -> None:
    folder = saved(small_disk / "c", 1, 2)
    before = names(folder)
    for size in (3_000_000, 60):  # fails in the middle, and at the manifest or the end
        if size == 60:
            fill(small_disk)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device; .*step-00000002 is untouched"):
            checkpoint.save(folder, 3, {"w": torch.ones(size)})
        assert names(folder) == before
        assert number_of(checkpoint.load(folder)) == 2
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; free some space"):
        checkpoint.write_file(small_disk / "a.json", "x" * 5000)
    assert names(small_disk) == ["c", "filler"]
    (small_disk / "filler").unlink()
    saved(folder, 3)
    assert number_of(checkpoint.load(folder)) == 3


def test_a_write_that_fails_halfway_is_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(UserError, match="File too large; the checkpoint step-00000001 is untouched"):
            checkpoint.save(tmp_path, 2, {"w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("moment", ["step 2", "epoch 1", "step 6"])
def test_a_run_that_fills_the_disk_goes_on_when_there_is_space(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    quick = find_recipe("quickstart")
    recipe = replace(
        quick,
        data=replace(quick.data, limit=64, batch_size=32),
        schedule=replace(quick.schedule, epochs=3, warmup_epochs=0),
        checkpoint_minutes=0.0 if moment == "step 2" else 100.0,
    )
    done = 0

    class Filling(loop.Display):
        def step(self, *_: Any) -> None:
            nonlocal done
            done += 1
            if moment == f"step {done}":
                fill(small_disk)

        def epoch(self, record: dict[str, Any]) -> None:
            if moment == f"epoch {record['epoch']}":
                fill(small_disk)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "Display", Filling)
        with pytest.raises(UserError, match="No space left on device") as refused:
            loop.fit(recipe, small_disk / "run")
    assert "\n" not in str(refused.value)
    (small_disk / "filler").unlink()
    with caplog.at_level(logging.ERROR):
        loop.resume(small_disk / "run")
    loop.fit(recipe, tmp_path / "straight")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (small_disk / "run", tmp_path / "straight")]
    assert weights[0] == weights[1]
    lines = [(folder / "log.jsonl").read_text().splitlines() for folder in (small_disk / "run", tmp_path / "straight")]
    assert [json.loads(a)["train_loss"] for a in lines[0]] == [json.loads(b)["train_loss"] for b in lines[1]]
