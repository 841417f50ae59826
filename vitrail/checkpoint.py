"""Checkpoints that survive: written aside, flushed to the disk, renamed into place, checked by SHA-256 when read.

    checkpoints/step-00000120/state.pt         everything that resumes
    checkpoints/step-00000120/manifest.json    its size and digest, written last

The two newest are kept, so that a damaged one costs an epoch, not a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vitrail.errors import UserError

KEEP = 2
ASIDE = ".vitrail-partial-"
logger = logging.getLogger("vitrail")


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file or none of it: temporary file, fsync, rename, fsync of the folder (mode 0644).

    Raises UserError, and leaves no litter, where the disk is full or the folder may not be written.
    """
    temporary = _aside(path)
    try:
        with open(temporary, "wb") as file:
            # a file's name need not be UTF-8; what is not becomes the escape that JSON reads back
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Keep `state` as the checkpoint of `step` under `folder`, and drop all but the two newest.

    Raises UserError where it cannot be written; the checkpoints before it are then untouched.
    """
    final = folder / f"step-{step:08d}"
    temporary = _aside(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        temporary.mkdir()
        with open(temporary / "state.pt", "wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        manifest = {"step": step, "bytes": hashing.size, "sha256": hashing.digest.hexdigest()}
        write_file(temporary / "manifest.json", json.dumps(manifest))
        if final.exists():  # of the same step: half an epoch's end, or damaged
            os.replace(final, _aside(folder / f"{final.name}-before"))
        os.replace(temporary, final)
        _sync_folder(folder)
        _drop_all_but(final, folder)
    except (OSError, RuntimeError, UserError) as error:  # torch's zip writer turns a failed write into RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = cause.strerror if isinstance(cause, OSError) else cause
        kept = _checkpoints(folder)
        before = f"the checkpoint {kept[-1].name} is untouched" if kept else "there is no earlier checkpoint"
        raise UserError(
            f"cannot write the checkpoint {final}: {reason}; {before}; free some space, then continue with --resume"
        ) from error
    return final


def load(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint under `folder`, or None if there never was one.

    A damaged one is named in a warning and the one before it used. Raises UserError where all are damaged.
    """
    found = _checkpoints(folder)
    for path in reversed(found):
        damage = _damage(path)
        if damage is None:
            try:
                return torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # whole, and yet none of ours
                damage = f"it holds something else than weights and numbers: {str(error).partition('. ')[0]}"
        logger.warning("checkpoint %s is damaged (%s); looking for the one before it", path, damage)
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; train anew with another --out")
    return None


def clean(folder: Path) -> None:
    """Remove what a killed `write_file` or `save` left behind in `folder`."""
    for litter in folder.glob(f".*{ASIDE}[0-9]*"):
        if litter.is_dir():
            shutil.rmtree(litter)
        else:
            litter.unlink()


def _aside(path: Path) -> Path:
    """Where a file or folder is written before it is whole: hidden, beside its place, one name a process."""
    return path.with_name(f".{path.name}{ASIDE}{os.getpid()}")


def _checkpoints(folder: Path) -> list[Path]:
    numbered = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step-")))


def _drop_all_but(newest: Path, folder: Path) -> None:
    """Keep `newest` and the one before it. A checkpoint of a later step is one that was found damaged."""
    found = _checkpoints(folder)
    end = found.index(newest) + 1
    for path in found[: max(end - KEEP, 0)] + found[end:]:
        shutil.rmtree(path)
    clean(folder)


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        with open(path / "state.pt", "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return None if digest == manifest["sha256"] else "its contents do not match its SHA-256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
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

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()
