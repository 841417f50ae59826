"""The verb that measures how fast models are on this machine: `vitrail bench`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vitrail.commands.say import Json, console, print_json
from vitrail.errors import UserError

if TYPE_CHECKING:
    from vitrail.comparison.bench import Speed


def bench(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN...")],
    /,
    *,
    batches: str = "1,32",
    precisions: tuple[Literal["fp32", "bf16", "int8"], ...] = ("fp32",),
    optimized: FlagCreatePairsOff[bool] = False,
    training: FlagCreatePairsOff[bool] = False,
    rounds: int = 9,
    as_json: Json = False,
) -> None:
    """Images a second, latency, memory, and the share of what this machine can do, models in turn.

    Args:
        runs: Run folders, or names from `vitrail models`.
        batches: Images at once, separated by commas.
        precisions: What they compute in.
        optimized: Also what `vitrail.optimize` makes of them: the fastest engine that agrees.
        training: Also a training step.
        rounds: Times that each is timed, in turns, after two of warm-up.
    """
    import torch

    from vitrail.comparison.bench import bench
    from vitrail.comparison.ceiling import copy_bandwidth
    from vitrail.run import best_device

    found = bench(
        runs,
        batches=_counts(batches),
        precisions=precisions,
        training=training,
        optimized=optimized,
        rounds=rounds,
    )
    rows = list(found)
    device, bandwidth = best_device(), copy_bandwidth(best_device())
    if as_json:
        print_json(
            {
                "device": str(device),
                "threads": torch.get_num_threads(),
                "copy_bytes_per_s": bandwidth,
                "speeds": [asdict(row) for row in rows],
            }
        )
        return
    out = console()
    out.print(_table(rows))
    out.print(f"{device}, {torch.get_num_threads()} threads, copies {bandwidth / 1e9:.1f} GB/s")
    out.print("ceiling: the time of the model's matrix products alone, as a share of its time")


def _table(rows: list[Speed]) -> Table:
    table = Table(box=None, header_style="")
    for heading in ("model", "how", "precision"):
        table.add_column(heading)
    for heading in ("batch", "ms", "least", "most", "images/s", "memory", "ceiling"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.failed:
            table.add_row(row.model, row.how, row.precision, str(row.batch), row.failed)
            continue
        numbers = [f"{value:.1f}" for value in (row.milliseconds, row.least, row.most, row.images_per_s)]
        memory = f"{row.memory / 1e6:.0f} MB" if row.memory is not None else ""
        share = f"{row.ceiling_share:.0%}" if row.ceiling_share is not None else ""
        table.add_row(row.model, row.how, row.precision, str(row.batch), *numbers, memory, share)
    return table


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--batches is '{text}'; give whole numbers separated by commas, such as 1,16") from error
