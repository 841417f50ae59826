"""Checkpoints that survive: written aside, flushed to the disk, renamed into place, checked by SHA-256 when read.

    checkpoints/step-00000120/state.pt         everything that resumes
    checkpoints/step-00000120/...              of many processes: their parts of the tensors, each its own
    checkpoints/step-00000120/manifest.json    bytes and digest of every file, written last

The two newest are kept, so that a damaged one costs an epoch, not a run. One process alone may write to a run: `lock`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vitrail.errors import UserError

KEEP = 2
ASIDE = ".vitrail-partial-"
STATE, MANIFEST = "state.pt", "manifest.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what torch raises for files that it did not write
STRANGE = (pickle.UnpicklingError, EOFError, OSError, RuntimeError, AttributeError, LookupError, TypeError, ValueError)
logger = logging.getLogger("vitrail")


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file or none of it: temporary file, fsync, rename, fsync of the folder (mode 0644).

    Raises UserError, and leaves no litter, where the disk is full or the folder may not be written.
    """
    # a file's name need not be UTF-8; what is not becomes the escape that JSON reads back
    encoded = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        _write_file(path, encoded)
    except OSError as error:
        room = _room(path.parent, f"{len(encoded):,} bytes to write")
        advice = "free some space or choose another folder" if error.errno in NO_ROOM else "choose another folder"
        raise UserError(f"cannot write {path}: {error.strerror}{room}; {advice}") from error


# ---------------------------------------------------------------------- writing


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Keep `state` as the checkpoint of `step` under `folder`, and drop all but the two newest.

    Raises UserError where it cannot be written; the checkpoints before it are then untouched.
    """
    temporary = _place(folder, step)
    with writing(temporary, state):
        _make(temporary)
    return finish(temporary, step, state)


def begin(folder: Path, step: int) -> Path:
    """Make the empty folder in which the checkpoint of `step` is written before it is whole, under `folder`.

    Where many processes write, the main one calls this, tells the others what it returns, and calls `finish` once all
    have written. What is written in between belongs under `writing`. Raises UserError where it cannot be made.
    """
    temporary = _place(folder, step)
    with writing(temporary):
        _make(temporary)
    return temporary


@contextlib.contextmanager
def writing(temporary: Path, state: dict[str, Any] | None = None) -> Iterator[None]:
    """What is written into the folder that `begin` made: where it fails, for whatever reason, the folder is removed.

    Raises UserError where the system refuses to write; it says where, how many bytes (all of `state`, or those that
    were written), how many are free, and which checkpoint is left.
    """
    try:
        yield
    except BaseException as error:
        size = f"{_written(temporary):,} bytes of it were written"
        shutil.rmtree(temporary, ignore_errors=True)
        cause = _system_error(error)
        if cause is None:
            raise
        if state is not None:
            size = f"{_write_state(Path(os.devnull), state)['bytes']:,} bytes to write"
        raise UserError(_refusal(temporary, cause, size)) from error


def finish(temporary: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` and the manifest of all files beside what others wrote, rename the folder to the checkpoint of
    `step`, and drop all but the two newest. Raises UserError as `writing` does."""
    folder = temporary.parent
    final = folder / f"step-{step:08d}"
    with writing(temporary, state):
        files = {STATE: _write_state(temporary / STATE, state)}
        for path in sorted(temporary.rglob("*")):
            _sync(path)  # whoever wrote it may have left it in memory
            name = path.relative_to(temporary).as_posix()
            if path.is_file() and name not in files:
                files[name] = _digest(path)
        _write_file(temporary / MANIFEST, json.dumps({"step": step, "files": files}).encode())
        if final.exists():  # of the same step: half an epoch's end, or damaged
            os.replace(final, _aside(folder / f"{final.name}-before"))
        os.replace(temporary, final)
        _sync(folder)
        _drop_all_but(final, folder)
    return final


def clean(folder: Path) -> None:
    """Remove what a killed `write_file` or `save` left behind in `folder`. Only for who holds the run's lock."""
    for litter in folder.glob(f".*{ASIDE}[0-9]*"):
        if litter.is_dir():
            shutil.rmtree(litter)
        else:
            litter.unlink()


# ---------------------------------------------------------------------- reading


def load(folder: Path) -> dict[str, Any] | None:
    """The state in the newest whole checkpoint under `folder`, as `newest` finds it, or None if there never was one."""
    path = newest(folder)
    return None if path is None else read(path)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`, every file of it read and checked, or None if there never was one.

    A damaged one is named in a warning and the one before it used. Raises UserError where all are damaged.
    """
    found = _checkpoints(folder)
    for path in reversed(found):
        damage = _damage(path)
        if damage is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); looking for the one before it", path, damage)
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; train anew with another --out")
    return None


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint that `newest` has found whole. Code in it is not run (torch's weights_only)."""
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return state


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, whole or shared out over processes, from those of the same names that the processes wrote.

    Raises RuntimeError where one is missing or has another shape.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    reader = dcp.HuggingFaceStorageReader(str(path))  # safetensors: nothing in them is a pickle
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        first = next(failure for failure, _ in error.failures.values())
        raise RuntimeError(f"{type(first).__name__}: {first}") from error


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Have the run in `folder` for this process alone, by a record lock on the file `lock` in it. What a killed process
    has left there is removed.

    The system gives it up when the process dies, however it dies, and the loader's processes do not inherit it, so a
    killed run can be resumed at once. It does not tell threads of one process apart. Raises UserError where another
    process has the run, or the folder cannot be written.
    """
    import fcntl  # POSIX alone has it; reading runs needs no lock

    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is being trained by {holder}; wait for it or stop it, or choose another --out"
            ) from error
        except OSError as error:  # some network disks
            logger.warning("%s cannot be locked (%s); make sure that only one process trains it", path, error.strerror)
        if not _is_still(path, descriptor):  # whoever had it removed it just now, and a third may have made it anew
            raise UserError(f"{folder} has just been trained by another process; try again")
        with contextlib.suppress(OSError):  # a full disk: then the refusal names no process
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".ljust(80).encode(), 0)
        try:
            clean(folder)
            clean(folder / "checkpoints")
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # someone has removed the run
                path.unlink()
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- what the above is made of


def _aside(path: Path) -> Path:
    """Where a file or folder is written before it is whole: hidden, beside its place, one name a process."""
    return path.with_name(f".{path.name}{ASIDE}{os.getpid()}")


def _place(folder: Path, step: int) -> Path:
    return _aside(folder / f"step-{step:08d}")


def _make(temporary: Path) -> None:
    """The empty folder itself; what a killed process left is gone then."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    clean(temporary.parent)
    temporary.mkdir()


def _write_file(path: Path, content: bytes) -> None:
    temporary = _aside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


def _write_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Bytes and digest of what torch makes of `state`, written to `path`. Raises OSError where that fails."""
    with open(path, "wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError:
            if hashing.failure is not None:  # torch's zip writer turns it into words of its own
                raise hashing.failure from None
            raise
    return {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}


def _written(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _system_error(error: BaseException) -> OSError | None:
    """The system's refusal behind an error: itself, or what a process met under torch.distributed.checkpoint."""
    met = [failure for failure, _ in getattr(error, "failures", {}).values()]
    return next((each for each in (error, *met) if isinstance(each, OSError)), None)


def _refusal(temporary: Path, cause: OSError, size: str) -> str:
    folder = temporary.parent
    final = folder / temporary.name.removeprefix(".").partition(ASIDE)[0]
    kept = _checkpoints(folder)
    before = f"the checkpoint {kept[-1].name} is untouched" if kept else "there is no earlier checkpoint"
    advice = "free some space" if cause.errno in NO_ROOM else "make the folder writable"
    return (
        f"cannot write the checkpoint {final}: {cause.strerror}{_room(folder, size)}; {before}; "
        f"{advice}, then continue with --resume"
    )


def _room(folder: Path, size: str) -> str:
    """What is needed and what there is, in brackets; nothing where there is no such folder."""
    try:
        return f" ({size}, {shutil.disk_usage(folder).free:,} free)"
    except OSError:
        return ""


def _checkpoints(folder: Path) -> list[Path]:
    numbered = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step-")))


def _drop_all_but(final: Path, folder: Path) -> None:
    """Keep `final` and the one before it. A checkpoint of a later step is one that was found damaged."""
    found = _checkpoints(folder)
    end = found.index(final) + 1
    for path in found[: max(end - KEEP, 0)] + found[end:]:
        shutil.rmtree(path)
    clean(folder)


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None: every file is what the manifest says, and the state is a state."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"]
        wrong = sorted(name for name, said in files.items() if _digest(path / name) != said)
        if wrong:
            return f"the contents of {', '.join(wrong)} are not those that were written"
        if STATE not in files or manifest != {"step": int(path.name.removeprefix("step-")), "files": files}:
            return f"{MANIFEST} is that of another"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not one"
    try:
        torch.load(path / STATE, map_location="meta", weights_only=True)  # reads names and shapes, no numbers
    except STRANGE as error:
        reason = str(error).partition(". ")[0].partition("\n")[0]
        return f"it holds something else than weights and numbers: {reason}"
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Hashing:
    """A file that counts and digests what is written through it, so that nothing is read back."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: BaseException | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        try:
            return self.file.write(content)
        except BaseException as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()
