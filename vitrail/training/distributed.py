"""Many processes as torchrun starts them: who this one is, and what all of them together say.

A run started without torchrun is process 0 of 1: every function here then returns what it was given, and nothing is
sent. Numbers and small Python values travel over gloo; gradients are DDP's and FSDP's business.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitrail.errors import Lost, UserError

TIMEOUT = timedelta(minutes=30)  # of one collective: rank 0 may be computing what the others wait for
logger = logging.getLogger("vitrail")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def process_group(always: bool = False) -> Iterator[None]:
    """Join the other processes that torchrun has started, and leave them at the end; `always`: even where there are
    none, as FSDP needs. All but the first process then log nothing but errors. Within a group this does nothing.

    A UserError that several processes meet is raised by one of them; the others raise Lost.
    """
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    if dist.is_initialized() or not (launched or always):
        yield
        return
    device = torch.accelerator.current_accelerator(check_available=True)
    backend = "gloo"
    if device is not None:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device.type)}"
    if launched:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    level = logger.level
    if not is_main():
        logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        if _others_have_said():
            raise Lost from error
        raise
    finally:
        logger.setLevel(level)
        dist.destroy_process_group()


def _others_have_said() -> bool:
    """Whether another process of the group has asked this before, or has ended: then it has said what is wrong."""
    try:
        return dist.distributed_c10d._get_default_store().add("what is wrong", 1) > 1
    except dist.DistError:
        return True


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the device it lies on."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def greatest(*numbers: int) -> list[int]:
    """The greatest of each number over all processes: what one of them asks for, all of them do."""
    if world() == 1:
        return list(numbers)
    value = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.tolist()


def gathered(value: Any) -> list[Any]:
    """What every process has, in the order of their numbers. Only for values of the run's own: they are pickled."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def told(value: Any) -> Any:
    """What process 0 has."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the body before the others do: what it downloads or writes, they find.

    Where it fails, they fail too, instead of waiting for it.
    """
    if is_main():
        failure: str | None = None
        try:
            yield
        except UserError as error:
            failure = str(error)
            raise
        finally:
            told(failure)
    else:
        failure = told(None)
        if failure is not None:
            raise Lost
        yield
