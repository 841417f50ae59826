"""Files and checkpoints are whole or not there: damage is found, a full disk costs nothing that was kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import io
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from kills import RESUME, TRAIN, finish, launch, said, steps, wait_for
from processes import PROCESSES

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
    with pytest.raises(UserError, match=r"^cannot write .*a: [A-Z][^;]*; choose another folder$"):
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


def test_cut_files_are_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At 100 places each, the state and the manifest; and when one of them is gone."""
    folder = saved(tmp_path, 1, 2)
    for file in sorted((folder / "step-00000002").iterdir()):
        content = file.read_bytes()
        for place in range(100):
            file.write_bytes(content[: place * len(content) // 100])
            assert_the_one_before_is_used(folder, caplog)
        file.unlink()
        assert_the_one_before_is_used(folder, caplog)
        file.write_bytes(content)
    assert number_of(checkpoint.load(folder)) == 2


def test_flipped_bits_are_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """100 of each file."""
    folder = saved(tmp_path, 1, 2)
    draw = random.Random(0)
    for file in sorted((folder / "step-00000002").iterdir()):
        content = file.read_bytes()
        for bit in draw.sample(range(8 * len(content)), 100):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            assert_the_one_before_is_used(folder, caplog)
        file.write_bytes(content)
    assert number_of(checkpoint.load(folder)) == 2


def assert_the_one_before_is_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    assert number_of(checkpoint.load(folder)) == 1
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"checkpoint .*step-00000002 is damaged \(.+\); looking for the one before it", said, re.DOTALL)


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


# ---------------------------------------------------------------------- code in a checkpoint


class Malicious:
    """Unpickled, it makes a folder: what a stranger's file does with your rights."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


class Armed(Malicious):
    """Made harmlessly, it strikes when its attributes are set."""

    def __reduce__(self) -> Any:
        return Armed, (Path(),), {"target": self.target}

    def __setstate__(self, attributes: dict[str, Path]) -> None:
        attributes["target"].mkdir()


class Looked(Malicious):
    """Finds the function by its name, as getattr does."""

    def __reduce__(self) -> Any:
        return _Call(getattr, (os, "mkdir")), (str(self.target),)


class _Call:
    def __init__(self, function: Any, arguments: Any) -> None:
        self.what = function, arguments

    def __call__(self) -> None: ...

    def __reduce__(self) -> Any:
        function, (module, name) = self.what
        return function, (_Import(module.__name__), name)


class _Import:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.name,)


class Dictionary(dict[str, int]):
    """Pickled as a plain OrderedDict whose items come from a call of eval."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return OrderedDict, (_Eval(f"__import__('os').mkdir({str(self.target)!r}) or []"),)


class _Eval:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return eval, (self.code,)


def hooked(target: Path) -> torch.nn.Parameter:
    """A parameter as torch pickles it, with something else among its hooks."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.extra = Malicious(target)  # type: ignore[attr-defined]
    return parameter


def module(target: Path) -> torch.nn.Module:
    layer = torch.nn.Linear(2, 2)
    layer.extra = Malicious(target)  # type: ignore[assignment]
    return layer


def with_pickle(file: Path, code: bytes) -> None:
    """A file of torch's whose pickle is this one."""
    torch.save({"w": torch.ones(4)}, file)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, code if name.endswith("data.pkl") else data)


def storage(target: Path) -> bytes:
    """A pickle whose storage is on a device that only a call can name."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", Malicious(target), 4) if value == "here" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": "here"})
    return stream.getvalue()


PICKLES: dict[str, Callable[[Path, Path], Any]] = {
    "a call": lambda file, target: torch.save({"step": Malicious(target)}, file),
    "deep among weights": lambda file, target: torch.save(
        {**state(2), "history": [{"a": (1, [{"b": Malicious(target)}])}]}, file
    ),
    "as a key": lambda file, target: torch.save({("a", Malicious(target)): 1}, file),
    "torch's old format": lambda file, target: torch.save(
        Malicious(target), file, _use_new_zipfile_serialization=False
    ),
    "a plain pickle": lambda file, target: file.write_bytes(pickle.dumps(Malicious(target), 2)),
    "opcodes by hand": lambda file, target: with_pickle(file, b"cos\nmkdir\n(V" + str(target).encode() + b"\ntR."),
    "attributes set": lambda file, target: torch.save(Armed(target), file),
    "a function found by name": lambda file, target: torch.save(Looked(target), file),
    "eval inside an OrderedDict": lambda file, target: torch.save({"model": Dictionary(target)}, file),
    "a NumPy array of objects": lambda file, target: torch.save(
        {"w": np.array([Malicious(target)], dtype=object)}, file
    ),
    "a parameter's attribute": lambda file, target: torch.save({"w": hooked(target)}, file),
    "a whole module": lambda file, target: torch.save(module(target), file),
    "a storage's device": lambda file, target: with_pickle(file, storage(target)),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder, target = saved(tmp_path / "c", 1, 2), tmp_path / "done"
    last = folder / "step-00000002"
    PICKLES[kind](last / "state.pt", target)
    content = (last / "state.pt").read_bytes()
    digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (last / "manifest.json").write_text(json.dumps({"step": 2, "files": {"state.pt": digest}}))
    assert number_of(checkpoint.load(folder)) == 1
    assert "holds something else than weights" in caplog.text
    shutil.rmtree(folder / "step-00000001")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.load(folder)
    assert not target.exists()
    with contextlib.suppress(Exception):  # some strike, and are then no state that torch could make
        torch.load(last / "state.pt", weights_only=False)
    assert target.exists(), "the file is one that would run code"


# ---------------------------------------------------------------------- killed inside a save


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


def fill(disk: Path, all_but: int = 0) -> None:
    """To the last byte, or until so many are free."""
    with open(disk / "filler", "ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
        file.truncate(file.tell() - all_but)


@pytest.mark.parametrize("share", [0, 0.3, 0.8, "all but the last page", "all but the manifest", "enough"])
def test_a_full_disk_costs_no_earlier_checkpoint(small_disk: Path, share: float | str) -> None:
    """Space for none of a save, for parts of it, and for all (the next page more is enough)."""
    folder = saved(small_disk / "c", 1, 2)
    before = names(folder)
    big = {"w": torch.ones(100_000)}
    size = (checkpoint.save(small_disk / "measured", 3, big) / "state.pt").stat().st_size
    shutil.rmtree(small_disk / "measured")
    pages = -(-size // 4096)
    words = {"all but the last page": pages - 1, "all but the manifest": pages, "enough": pages + 1}
    room = words[share] if isinstance(share, str) else int(share * pages)
    fill(small_disk, all_but=4096 * room)
    if share == "enough":
        assert checkpoint.save(folder, 3, big).name == "step-00000003"
        return
    with pytest.raises(UserError) as refused:
        checkpoint.save(folder, 3, big)
    assert str(refused.value) == (
        f"cannot write the checkpoint {folder}/step-00000003: No space left on device "
        f"({size:,} bytes to write, {4096 * room:,} free); the checkpoint step-00000002 is untouched; "
        f"free some space, then continue with --resume"
    )
    assert names(folder) == before
    assert number_of(checkpoint.load(folder)) == 2
    if not room:
        with pytest.raises(UserError, match=r"a.json: No space left on device \(5,000 bytes to write, 0 free\); free"):
            checkpoint.write_file(small_disk / "a.json", "x" * 5000)
    assert names(small_disk) == ["c", "filler"]
    (small_disk / "filler").unlink()
    saved(folder, 3)
    assert number_of(checkpoint.load(folder)) == 3


def test_a_read_only_folder_costs_no_earlier_checkpoint(small_disk: Path) -> None:
    folder = saved(small_disk / "c", 1, 2)
    before = names(folder)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    try:
        sentence = r"3: Read-only file system \(\d,\d+ bytes to write, 8,\d+,\d+ free\); the .*2 is untouched; make the"
        with pytest.raises(UserError, match=sentence):
            checkpoint.save(folder, 3, state(3))
        with pytest.raises(UserError, match=r"a: Read-only file system \(1 bytes to write, 8,\d+,\d+ free\); choose"):
            checkpoint.write_file(small_disk / "a", "x")
        with (
            pytest.raises(UserError, match=r"cannot write .*lock: Read-only file system"),
            checkpoint.lock(small_disk),
        ):
            pass
        assert number_of(checkpoint.load(folder)) == 2
    finally:
        subprocess.run([*remount[:2], "remount,rw", remount[3]], check=True)
    assert names(folder) == before
    assert names(small_disk) == ["c"]


def test_a_write_that_fails_halfway_is_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(UserError, match=r"File too large \(4,00\d,\d+ bytes .*step-00000001 is untouched"):
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


def test_a_run_on_a_full_disk_ends_with_exit_code_1(small_disk: Path, tmp_path: Path) -> None:
    """As `vitrail train` says it; with space again it goes on to its end."""
    (small_disk / "desk").mkdir()
    place = tmp_path / "desk"
    place.mkdir()
    (place / "run").symlink_to(small_disk / "desk")  # what it prints is not on the full disk
    process = launch(place, [*TRAIN, "--schedule.epochs", "6"])
    wait_for(process, lambda: steps(place) >= 4)
    while process.is_alive():  # a save that was under way has given up an older checkpoint's space since
        fill(small_disk)
    process.join()
    assert process.exitcode == 1, said(place)
    assert "Traceback" not in said(place)
    last = said(place).splitlines()[-1]
    assert re.match(
        r"vitrail: cannot write .*run/.*: No space left on device \([\d,]+ bytes to write, [\d,]+ free\); ", last
    )
    assert not list((small_disk / "desk").rglob(".*"))
    kept = names(place / "run" / "checkpoints")
    assert len(kept) == 2
    assert checkpoint.newest(place / "run" / "checkpoints") == place / "run" / "checkpoints" / kept[-1]
    (small_disk / "filler").unlink()
    finish(place, RESUME)


def test_a_run_in_a_read_only_folder_ends_with_exit_code_1(small_disk: Path, tmp_path: Path) -> None:
    saved(small_disk / "begun", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = launch(tmp_path / "desk", ["train", "--out", f"{small_disk}/new", "--data.limit", "20"])
    process.join(60)
    sentence = f"vitrail: cannot make the folder {small_disk}/new: Read-only file system; choose another --out"
    assert (process.exitcode, said(tmp_path / "desk").splitlines()[-1]) == (1, sentence)
    assert names(small_disk) == ["begun"]


# ---------------------------------------------------------------------- many processes, many files


def written_by_many(folder: Path, step: int) -> Path:
    """As several processes write a checkpoint: each a file into the folder that one of them made."""
    temporary = checkpoint.begin(folder, step)
    (temporary / "parts").mkdir()
    for number in range(3):
        (temporary / "parts" / f"{number}.safetensors").write_bytes(bytes([step, number]) * 1000)
    (temporary / ".metadata").write_text("hidden")
    return checkpoint.finish(temporary, step, state(step))


def test_a_checkpoint_of_many_files_is_whole_or_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    first, second = written_by_many(tmp_path, 1), written_by_many(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == second
    assert number_of(checkpoint.load(tmp_path)) == 2
    (second / "what someone else put there").write_text("no part of it")
    files = [path for path in second.rglob("*") if path.is_file() and "someone" not in path.name]
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        for damaged in (content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:], None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            caplog.clear()
            assert checkpoint.newest(tmp_path) == first
            assert file.name in caplog.text
        file.write_bytes(content)
    assert checkpoint.newest(tmp_path) == second
    assert not caplog.text.count("someone")
    for folder in (first, second):
        (folder / "parts" / "1.safetensors").unlink()
    with pytest.raises(UserError, match=r"^every checkpoint in .* is damaged"):
        checkpoint.newest(tmp_path)


def test_a_manifest_of_another_step_or_of_nothing_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    last = tmp_path / "step-00000002"
    for text in ('{"step": 2, "files": {}}', "[]", "3", (tmp_path / "step-00000001" / "manifest.json").read_text()):
        (last / "manifest.json").write_text(text)
        caplog.clear()
        assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
        assert "step-00000002 is damaged" in caplog.text


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_part_that_cannot_be_written_leaves_nothing(small_disk: Path) -> None:
    """Through torch.distributed.checkpoint, which has errors of its own kind."""
    folder = saved(small_disk / "c", 1)
    writer: Any = dcp.HuggingFaceStorageWriter
    temporary = checkpoint.begin(folder, 2)
    sentence = (
        r"step-00000002: .*No space left .*bytes of it were written, 8,\d+,\d+ free\); .*step-00000001 is untouched"
    )
    with pytest.raises(UserError, match=sentence), checkpoint.writing(temporary):
        dcp.save({"w": torch.ones(4_000_000)}, storage_writer=writer(str(temporary)), no_dist=True)
    assert names(folder) == ["step-00000001"]
    temporary = checkpoint.begin(folder, 2)
    with checkpoint.writing(temporary):
        dcp.save({"w": torch.ones(1000)}, storage_writer=writer(str(temporary)), no_dist=True)
    checkpoint.finish(temporary, 2, state(2))
    assert checkpoint.newest(folder) == folder / "step-00000002"


def test_what_is_no_refusal_of_the_system_keeps_its_words(tmp_path: Path) -> None:
    temporary = checkpoint.begin(tmp_path, 1)
    with pytest.raises(RuntimeError, match="loader worker"), checkpoint.writing(temporary):
        raise RuntimeError("a loader worker has died")
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpoint.save(tmp_path, 1, {"f": lambda: 0})
    assert not names(tmp_path)


# ---------------------------------------------------------------------- one process a run


def hold(folder: Path, told: Any) -> None:
    """Lock `folder`, have a child that outlives this process, and wait."""
    with checkpoint.lock(folder):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        told.send(child)
        told.recv()


def test_a_run_has_one_process(tmp_path: Path) -> None:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    child = ours.recv()
    try:
        sentence = rf"^{tmp_path} is being trained by process {process.pid} on \S+; wait for it or stop it, or choose"
        with pytest.raises(UserError, match=sentence), checkpoint.lock(tmp_path):
            pytest.fail("two processes have the run")
        process.kill()
        process.join()
        assert names(tmp_path) == ["lock"]
        os.kill(child, 0)  # it has inherited the open file, and not the lock
        with checkpoint.lock(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
        assert not names(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_has_the_run_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints", 1, 2, 3)
    (folder / f".step-00000003-before{checkpoint.ASIDE}123").mkdir()
    (tmp_path / f".recipe.json{checkpoint.ASIDE}123").write_text("half")
    with checkpoint.lock(tmp_path):
        assert names(folder) == ["step-00000002", "step-00000003"]
        assert names(tmp_path) == ["checkpoints", "lock"]
    assert names(tmp_path) == ["checkpoints"]


def test_a_lock_that_was_given_up_while_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is then one that nobody else can find."""
    lockf = fcntl.lockf

    def late(descriptor: int, how: int) -> None:
        (tmp_path / "lock").unlink()
        lockf(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    with pytest.raises(UserError, match="has just been trained by another process"), checkpoint.lock(tmp_path):
        pytest.fail("a third process could have the run too")
