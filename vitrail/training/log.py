"""One record an epoch, to `log.jsonl`, TensorBoard and, where it is installed and configured, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

from vitrail.checkpoint import write_file
from vitrail.errors import UserError
from vitrail.recipe import Recipe, to_json

Record = dict[str, Any]
logger = logging.getLogger("vitrail")


class Log:
    """Writes records as they come. A resumed run starts from the records its checkpoint knows: later ones, which the
    resumed run makes again, are taken off the file."""

    def __init__(self, folder: Path, recipe: Recipe, history: list[Record]):
        from torch.utils.tensorboard import SummaryWriter  # costs seconds to import

        self.file = folder / "log.jsonl"
        self.lines = [json.dumps(record) + "\n" for record in history]
        write_file(self.file, "".join(self.lines))
        step = history[-1]["step"] + 1 if history else 0
        self.tensorboard = SummaryWriter(str(folder), purge_step=step)
        self.wandb = _wandb_run(folder, recipe)

    def write(self, record: Record) -> None:
        """Add a record; its numbers become curves over the step. Raises UserError where the disk is full."""
        self.lines.append(json.dumps(record) + "\n")
        write_file(self.file, "".join(self.lines))  # whole, so that no crash leaves half a line
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        try:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, record["step"])
        except OSError as error:  # of the writer's thread, at some earlier time
            raise UserError(f"cannot write TensorBoard's events in {self.file.parent}: {error.strerror}") from error
        if self.wandb is not None:
            self.wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush everything. Curves that can no longer be written are said, and cost nothing else."""
        try:
            self.tensorboard.close()
        except OSError as error:
            logger.warning("the last of TensorBoard's events in %s are lost: %s", self.file.parent, error.strerror)
        if self.wandb is not None:
            self.wandb.finish()


def _wandb_run(folder: Path, recipe: Recipe) -> Any:
    """A W&B run, where wandb is installed and the environment asks for it (WANDB_API_KEY, WANDB_MODE or
    WANDB_PROJECT is set): it would otherwise stop the training with a question."""
    asked = any(key in os.environ for key in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"))
    if not asked or importlib.util.find_spec("wandb") is None:
        return None
    import wandb

    project = os.environ.get("WANDB_PROJECT", "vitrail")
    # one id a folder, so that a resumed run goes on with its curves
    return wandb.init(
        project=project,
        name=folder.name,
        id=folder.name,
        resume="allow",
        dir=str(folder),
        config=json.loads(to_json(recipe)),
    )
