"""Ctrl-C and SIGTERM end a run after the step at hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vitrail.data.loader import Batch, Loader


class Asked(Exception):
    """The run was asked to stop while it scored images: nothing has changed since its last step."""


class Heeding:
    """A loader that asks after every batch whether to go on: scoring may take minutes, a stop should take seconds."""

    def __init__(self, loader: Loader, asked: Callable[[], bool]):
        self.loader, self.asked = loader, asked

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The loader's batches. Raises Asked between two of them."""
        for batch in self.loader.epoch(epoch, start):
            yield batch
            if self.asked():
                raise Asked


class Stop:
    """Whether, and by which signal, the run was asked to stop."""

    signum: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM in a Stop instead of dying of them. A second Ctrl-C stops at once, unsaved."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return

    def note(signum: int, _frame: FrameType | None) -> None:
        if stop.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signum = signum

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
