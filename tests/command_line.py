"""The command line inside the test's own process: what it said, and how it ended."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from vitrail import cli


class Said(NamedTuple):
    """What one command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def vitrail(*words: object) -> Said:
    """Run `vitrail WORDS...`. Whatever it raises except the end of the program is a bug, and fails the test."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with (
        mock.patch.object(sys, "argv", ["vitrail", *map(str, words)]),
        mock.patch.object(logging.root, "handlers", []),  # so that main() says warnings on this standard error
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            return Said(int(end.code or 0), *map(text, (out, err)))
    raise AssertionError("main() returned without an exit code")


def text(stream: io.TextIOWrapper) -> str:
    """What was written to a stream in memory."""
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


def tiny_run(out: Path) -> Path:
    """A finished run on 60 digits, in two epochs; what training it said is kept beside it, in said.json."""
    small = ["--data.limit", 60, "--data.batch-size", 20, "--data.workers", 0]
    said = vitrail("train", "--out", out, "--schedule.epochs", 2, "--schedule.warmup-epochs", 0, *small)
    assert said.code == 0, said.err
    (out.parent / "said.json").write_text(json.dumps(said._asdict()))
    return out
