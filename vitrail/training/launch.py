"""`vitrail train --processes N`: this command N times on this machine, under torchrun's engine.

What torchrun says of processes that died, one sentence says here; what a process has said itself is not repeated.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vitrail.errors import Interrupted, Lost, UserError

logger = logging.getLogger("vitrail")


def launch(arguments: list[str], out: Path, processes: int, max_restarts: int) -> None:
    """Run `vitrail train ARGUMENTS` in `processes` processes until the run in `out` is finished.

    Where one of them is killed, the others end, and all start again from the last checkpoint, at most `max_restarts`
    times. Raises UserError naming the process that died, Interrupted after Ctrl-C or SIGTERM (they have then saved),
    Lost where a process has said itself why it ended.
    """
    # each process may use its share of the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for attempt in range(max_restarts + 1):
        begun = (out / "recipe.json").exists()
        words = ["--resume", str(out)] if attempt and begun else arguments
        died = _run_once(["train", *words], processes)
        if died is None:
            return
        if attempt < max_restarts:
            logger.warning("%s; restart %d of %d", died, attempt + 1, max_restarts)
    raise UserError(f"{died}; the others were stopped; `vitrail train --resume {out} --processes {processes}` goes on")


def _run_once(words: list[str], processes: int) -> str | None:
    """What died, in words, or None where all ended well."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vitrail", *words)
    except SignalException as error:
        raise Interrupted(int(error.sigval), "") from error
    except ChildFailedError as error:
        return _what_died(error, processes)
    return None


def _what_died(error: ChildFailedError, processes: int) -> str:
    """The process that was killed: those that lost it end with an exit code of their own, or by torchrun's SIGTERM.
    Raises Lost or Interrupted where none was killed: then one of them has said what is wrong."""
    killed = [(number, failure) for number, failure in error.failures.items() if failure.exitcode < 0]
    if killed:
        number, failure = min(killed, key=lambda each: (each[1].exitcode == -signal.SIGTERM, each[1].timestamp))
        name = signal.Signals(-failure.exitcode).name
        return f"process {number} of {processes} (pid {failure.pid}) was killed by {name}"
    code = max(failure.exitcode for failure in error.failures.values())
    if code > 128:  # each was sent a signal of its own, and saved
        raise Interrupted(code - 128, "") from error
    raise Lost from error
