"""What one sees while a run trains, on standard error: a live bar in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

METRICS = {
    "top1": "accuracy",
    "map": "mean average precision",
    "patch_accuracy": "patches right",
    "patch_r2": "variance of patches explained",
}


class Bar:
    """A live bar of `columns` on standard error in a terminal, elsewhere nothing but the lines that are said."""

    def __init__(self, *columns: ProgressColumn, quiet: bool = False):
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)


class Display(Bar):
    """A bar over all steps of the run, with epoch, loss, rate and time left; a line for each finished epoch."""

    def __init__(self, epochs: int, steps: int, done: int, quiet: bool = False):
        super().__init__(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            quiet=quiet,
        )
        self.epochs = epochs
        self.task = self.bar.add_task("", total=steps, completed=done, epoch=0, epochs=epochs, status="starting")

    def step(self, epoch: int, loss: float, rate: float) -> None:
        """One update done; `epoch` counts from 0, `rate` is images a second."""
        self.bar.update(self.task, advance=1, epoch=epoch + 1, status=f"loss {loss:.3f}  {rate:,.0f} images/s")

    def epoch(self, record: dict[str, Any]) -> None:
        """The line of a finished epoch, from its record in the log."""
        metric = record["metric"]
        self.say(
            f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['train_loss']:.4f}  "
            f"{record['split']} loss {record['val_loss']:.4f}  {METRICS[metric]} {record[f'val_{metric}']:.2%}  "
            f"{record['images_per_s']:,.0f} images/s"
        )
