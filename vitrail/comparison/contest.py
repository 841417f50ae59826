"""Several ways of doing the same work, timed in turns: each in a process of its own, A B A B, one at a time.

A contestant is a function, importable by name, that prepares and returns the work; the work is called once a round and
may return how much it did (images, say), else 1. A process of its own keeps what a library does to its process
(allocator, threads, patches) from the others and gives each a high-water mark of memory. Who fails keeps a sentence
that says why, and the others go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from vitrail.comparison.memory import high_water

Work = Callable[[], Any]


class Measured(NamedTuple):
    """What one contestant took."""

    seconds: list[float]
    """Of each round, divided by what the work says it did."""
    preparing: float
    """Seconds until the work was ready, imports included."""
    peak: int
    """Bytes at most of its process."""
    ready: int
    """Bytes at most when the work was ready to begin."""
    failed: str = ""


class Ratio(NamedTuple):
    """Of each round, one's seconds over another's."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def contest(
    contestants: Mapping[str, Callable[[], Work]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Measured]:
    """Each contestant's times: prepared one after another, then `warmup` and `rounds` turns; who begins goes round."""
    with contextlib.ExitStack() as held:
        corners = {
            name: held.enter_context(_corner(make, (environments or {}).get(name, {})))
            for name, make in contestants.items()
        }
        ready = {name: _told(pipe) for name, pipe in corners.items()}
        failed = {name: str(answer["failed"]) for name, answer in ready.items() if "failed" in answer}
        seconds: dict[str, list[float]] = {name: [] for name in corners}
        names, peaks = list(corners), {name: ready[name].get("peak", 0) for name in corners}
        for turn in range(warmup + rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if name in failed:
                    continue
                answer = _told(corners[name], "work")
                if "failed" in answer:
                    failed[name] = str(answer["failed"])
                    continue
                peaks[name] = answer["peak"]
                if turn >= warmup:
                    seconds[name].append(answer["seconds"])
    return {
        name: Measured(
            seconds[name],
            ready[name].get("seconds", 0.0),
            peaks[name],
            ready[name].get("peak", 0),
            failed.get(name, ""),
        )
        for name in contestants
    }


def ratio(ours: Measured, theirs: Measured) -> Ratio | None:
    """Seconds of ours over those of theirs, round by round; None where one of them failed."""
    if ours.failed or theirs.failed:
        return None
    found = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


@contextlib.contextmanager
def _corner(make: Callable[[], Work], environment: Mapping[str, str]) -> Iterator[Connection]:
    """The process of a contestant, which begins to prepare at once and alone."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # read by the child as it starts
    try:
        process = context.Process(target=_serve, args=(there, make), daemon=False)
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    there.close()
    here.poll(None)  # prepared, or dead: the next one begins when this one is done
    try:
        yield here
    finally:
        with contextlib.suppress(OSError):
            here.send("end")
        process.join(10)
        process.kill()


def _told(pipe: Connection, word: str = "") -> dict[str, Any]:
    """What a contestant answers, to a word or to its start."""
    try:
        if word:
            pipe.send(word)
        answer: dict[str, Any] = pipe.recv()
    except (EOFError, OSError):
        return {"failed": "its process ended, as a rule for want of memory"}
    return answer


def _serve(pipe: Connection, make: Callable[[], Work]) -> None:
    """A contestant's process: prepares, then works whenever it is told to."""
    try:
        start = time.perf_counter()
        work = make()
        pipe.send({"seconds": time.perf_counter() - start, "peak": high_water()})
        while pipe.recv() == "work":
            start = time.perf_counter()
            done = work()
            took = time.perf_counter() - start
            pipe.send({"seconds": took / (done if isinstance(done, int | float) else 1), "peak": high_water()})
    except Exception as error:  # a peer may fail in any way; the others go on, and its row says why
        with contextlib.suppress(OSError):
            pipe.send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
