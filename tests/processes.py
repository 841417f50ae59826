"""Several processes that train one run, as torchrun starts them, forked from a server that has torch imported."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = [
    "torch.utils.tensorboard",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "sklearn.datasets",
    "sklearn.metrics",
]
PROCESSES.set_forkserver_preload(["vitrail.verbs", "vitrail.commands", "pytest", *LIBRARIES])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(world: int, folder: Path, words: list[str]) -> list[BaseProcess]:
    """`vitrail WORDS` in `world` processes with a common port; what they print goes to `folder`/<rank>.txt."""
    port = free_port()
    started: list[BaseProcess] = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in place.items()} if world > 1 else {}
        process = PROCESSES.Process(target=_vitrail, args=(folder, words, environment, rank), daemon=False)
        process.start()
        started.append(process)
    return started


def finish(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Their exit codes, once all have ended."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def together(world: int, folder: Path, words: list[str]) -> list[str]:
    """Run to the end, successfully; what each printed."""
    codes = finish(start(world, folder, words))
    said = [(folder / f"{rank}.txt").read_text() for rank in range(world)]
    assert codes == [0] * world, "\n".join(said)
    return said


def _vitrail(folder: Path, words: list[str], environment: dict[str, str], rank: int) -> None:
    from vitrail.cli import main

    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)  # as torchrun does: processes that each use all cores wait for one another
    descriptor = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, buffering=1) for number in (1, 2))
    sys.argv = ["vitrail", *words]
    main()
