"""What learns: a module, its optimiser, its moving average, and one update from one batch, on any number of processes.

The batch of a step is that of all processes together. Each takes its share and weighs its loss by it, and the gradients
are summed, so that an update is the same however many processes, micro-batches and damaged images there are. SAM takes
its first step along the gradient of the whole batch too (the papers let each process climb its own share). BatchNorm
alone tells processes apart: on GPUs it normalises with the whole batch, on CPUs each process with its share, as it does
with each micro-batch. What it remembers is then the mean of theirs by their images, so that all score one model.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vitrail.data.loader import Batch, hash_seed
from vitrail.layers.memory_format import channels_last
from vitrail.recipe import Recipe
from vitrail.training.average import Average
from vitrail.training.distributed import rank, total, world
from vitrail.training.optim import optimizer
from vitrail.training.sam import ascend, frozen_statistics
from vitrail.training.tasks.task import Task


class Learner:
    """`module` is what the task trains: the model, or what holds it. Sharded or replicated where there are many."""

    def __init__(self, recipe: Recipe, task: Task, model: nn.Module, device: torch.device, labels: Tensor):
        """`labels` are those of two images, of the kind that the source has."""
        self.recipe, self.task, self.model, self.device = recipe, task, model, device
        data = recipe.data
        # what stands in where a process has no image of a batch: it counts nothing, but all must take part
        images = torch.zeros(2, data.in_chans or 3, data.img_size or 1, data.img_size or 1)
        self.nothing = Batch(images, labels, torch.zeros(2, dtype=torch.long), [])
        self.heads: list[nn.Module] = model.heads()  # type: ignore[operator]
        self.module = task.module(model).to(device)
        if world() > 1 and device.type == "cuda":
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
        if recipe.sharded:
            from vitrail.training.sharded import shard

            shard(self.module)
        else:  # FSDP takes no other layout than torch's own
            channels_last(self.module)
        if recipe.compile:
            self.module.compile()
        self.optimizer = optimizer(self.module, recipe.optim)
        self.average = Average(self.module, recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.learned = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.frozen: bool | None = None
        self.replica: Any = self.module

    # ------------------------------------------------------------------ one update

    def gradients(self, batch: Batch, lr: float, seed: int) -> tuple[float, float]:
        """The gradients of a batch at the rate `lr`, clipped: (mean loss of all its images, norm before clipping).

        `apply` then makes the update. The numbers that are random are those of `seed`; what mixes images draws the
        same on every process, dropout and stochastic depth do not.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        mine = len(batch.images)
        shares = torch.zeros(world(), dtype=torch.float64)
        shares[rank()] = mine
        shares = total(shares)
        images, count = float(shares.sum()), min(self.recipe.optim.accumulate, int(shares.max()))
        torch.manual_seed(seed)
        parts = self.task.prepare(self._on_device(batch if mine else self.nothing))
        chunks = list(zip(*(part.tensor_split(count) for part in parts), strict=True))
        each = 1 / images if mine else 0.0
        loss = self._backward(chunks, each, seed)
        self._share_statistics(mine / images)
        if self.recipe.optim.rho:
            restore = ascend(list(self.module.parameters()), self.recipe.optim.rho)
            with frozen_statistics(self.module):
                self._backward(chunks, each, seed)
            restore()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.optim.clip_grad or math.inf)
        return float(total(loss)), float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def apply(self) -> None:
        """The update that the gradients ask for."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        skipped = self.scaler.get_scale() < scale  # the gradient had overflowed
        if self.average is not None and not skipped:
            self.average.update(self.module)

    def diverged(self, loss: float, norm: float) -> str | None:
        """What is not finite, in words. Under fp16 a gradient may overflow: the scaler then halves its scale."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        return None if math.isfinite(norm) or overflow else f"the gradient's norm became {norm}"

    def _backward(self, chunks: Sequence[tuple[Tensor, ...]], each: float, seed: int) -> Tensor:
        """Add up the gradients of all micro-batches, each image weighing `each`; this process's part of the mean loss.

        All processes have as many. An empty one, at the end of a share that is smaller than others, is the first one
        once more, and counts nothing.
        """
        torch.manual_seed(hash_seed(seed, rank()))
        loss_of_all = torch.zeros((), device=self.device)
        for k, chunk in enumerate(chunks):
            n = len(chunk[0])
            unseen = contextlib.nullcontext() if n else frozen_statistics(self.module)
            with self._together(k == len(chunks) - 1), unseen:
                with self.autocast():
                    loss = self.task.loss(self.replica, *(chunk if n else chunks[0])) * (n * each)
                # DDP and FSDP take the mean over processes; the sum is wanted
                self.scaler.scale(loss * world()).backward()
            loss_of_all += loss.detach()
        return loss_of_all

    def _share_statistics(self, share: float) -> None:
        """What BatchNorm has learned of the processes' images, averaged by how many each has (SyncBatchNorm does)."""
        if world() == 1 or self.device.type == "cuda":
            return
        for norm in self.module.modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats:
                for kept in (norm.running_mean, norm.running_var):
                    if kept is not None:
                        kept.copy_(total(kept * share))

    def _on_device(self, batch: Batch) -> Batch:
        images, labels = (part.to(self.device, non_blocking=True) for part in (batch.images, batch.labels))
        return Batch(images, labels, batch.index, [])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, the module computes in the precision of the recipe."""
        half = torch.float16 if self.recipe.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, half, enabled=self.recipe.precision != "fp32")

    def _together(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once, with the last micro-batch."""
        if self.recipe.sharded:
            self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self.replica, DistributedDataParallel) and not last:
            return self.replica.no_sync()
        return contextlib.nullcontext()

    # ------------------------------------------------------------------ modes

    def train(self, frozen: bool) -> None:
        """Training mode. `frozen`: all but the last layer, and what the task adds to the model, stays as it is, without
        dropout, and gets no gradient."""
        if frozen != self.frozen:
            self.frozen = frozen
            head = {parameter for layer in self.heads for parameter in layer.parameters()}
            body = {parameter for parameter in self.model.parameters() if parameter not in head}
            for parameter in self.learned:
                parameter.requires_grad_(not frozen or parameter not in body)
            if world() > 1 and not self.recipe.sharded:
                # anew, since it knows at its making which parameters have gradients
                ids = [self.device.index or 0] if self.device.type == "cuda" else None
                self.replica = DistributedDataParallel(
                    self.module, ids, find_unused_parameters=self._some_are_not_reached()
                )
        self.module.train(not frozen)
        for layer in self.heads:
            layer.train()

    def averaged(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, the module has the weights that are scored and saved: their moving average where there is one."""
        return self.average.applied(self.module) if self.average is not None else contextlib.nullcontext()

    def whole(self) -> dict[str, Tensor]:
        """The module's state; where it is sharded, put together on the main process and empty elsewhere."""
        if self.recipe.sharded:
            from vitrail.training import sharded

            return sharded.whole(self.module)
        return self.module.state_dict()

    def _some_are_not_reached(self) -> bool:
        """Whether the loss leaves some parameter without a gradient, for which DDP would wait: tried without data."""
        module = copy.deepcopy(self.module).to("meta").train()
        with torch.random.fork_rng(devices=[]):
            parts = [part.to("meta") for part in self.task.prepare(self._on_device(self.nothing))]
            self.task.loss(module, *parts).backward()
        return any(parameter.grad is None for parameter in module.parameters() if parameter.requires_grad)

    # ------------------------------------------------------------------ what resumes

    def state(self) -> dict[str, Any]:
        """Everything that decides the next update, unsharded."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.average.state_dict() if self.average is not None else None,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises KeyError, RuntimeError, TypeError or ValueError where it is another's."""
        self.module.load_state_dict(state["model"])
        saved, own = state["optimizer"]["param_groups"], self.optimizer.param_groups
        if len(saved) != len(own) or saved[0].keys() != own[0].keys():  # torch would take another optimiser's
            raise ValueError(f"its optimiser is not {self.recipe.optim.name}")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
