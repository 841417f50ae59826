"""Once over all images of a split, in several processes, with a bar: what looking and writing share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from vitrail.data.loader import WorkerDied, start_worker


def one_pass(
    items: Any, about: str, *, workers: int, progress: bool, order: Sequence[int] | None = None
) -> Iterator[Any]:
    """What `items` (with len and [i]) gives for each number, in `order`, or from 0 on.

    `about` stands before the bar, which `progress` shows on standard error where that is a terminal. Raises WorkerDied
    where one of the processes is killed.
    """
    batches: DataLoader[Any] = DataLoader(
        items,
        batch_size=16,
        sampler=order,
        collate_fn=list,
        num_workers=workers if len(items) > 64 else 0,  # starting processes costs more than reading a few images
        worker_init_fn=start_worker,
    )
    looked = iter(batches)  # before the bar's thread starts: the workers are forked here
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    try:
        for batch in track(looked, about, len(batches), console=console, transient=True, disable=hidden):
            yield from batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerDied(
            f"one of {batches.num_workers} processes that read the images was killed, as a rule for want of memory "
            f"({str(error).partition('. ')[0]}); close other programs and try again"
        ) from error
