"""How fast models are on this machine: images a second, latency, memory, and the share of what the machine can do.

The models answer in turns, each in a process of its own (contest.py), so that a machine that slows down slows all of
them. The ceiling of a model is the time of its matrix products alone (ceiling.py), in the same precision and batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.comparison.ceiling import Products, products
from vitrail.comparison.contest import Measured, contest
from vitrail.engines import optimize
from vitrail.errors import UserError
from vitrail.run import best_device, load

Precision = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Speed:
    """One model in one precision at one batch size; None where it failed, or where there is no such figure."""

    model: str
    how: str
    """eager, optimized (`vitrail.optimize`) or training."""
    precision: Precision
    batch: int
    milliseconds: float | None
    """Of a batch, or of a training step: the median of the rounds."""
    least: float | None
    most: float | None
    images_per_s: float | None
    memory: int | None
    """Bytes at most of its process, less those it had before the first batch; of a CPU only."""
    multiply_adds: int | None
    """Of the batch, or of the training step."""
    ceiling_share: float | None
    """Milliseconds of its matrix products alone over its milliseconds; above 1: an engine that multiplies faster."""
    failed: str = ""


def bench(
    runs: Sequence[str | Path],
    *,
    batches: Sequence[int] = (1, 32),
    precisions: Sequence[Precision] = ("fp32",),
    training: bool = False,
    optimized: bool = False,
    rounds: int = 9,
) -> Iterator[Speed]:
    """The speed of run folders and models' names, batch by batch: for each batch size and precision all models in turn.

    `optimized` measures what `vitrail.optimize` makes of them too, `training` a step: forward, backward, AdamW, under
    autocast where `precisions` has bf16. int8 is only for `optimized`. Raises UserError for numbers that make no sense
    and names that lead to no model.
    """
    _check(runs, batches, precisions, training, optimized, rounds)
    for precision in precisions:
        for batch in batches:
            works: dict[tuple[str, str], Callable[[], Callable[[], object]]] = {}
            ceilings: dict[tuple[str, str], Products] = {}
            for name in map(str, runs):
                if precision != "int8":
                    works[name, "eager"] = partial(_answering, name, batch, precision)
                if optimized:
                    works[name, "optimized"] = partial(_optimized, name, batch, precision)
                if training and precision != "int8":
                    works[name, "training"] = partial(_training, name, batch, precision)
            for (name, how), make in works.items():
                if precision != "int8":
                    ceilings[name, how] = products(make() if how != "optimized" else _answering(name, batch, precision))
            found = contest({" ".join(key): make for key, make in works.items()}, rounds=rounds)
            for key, one in zip(works, found.values(), strict=True):
                yield _speed(*key, precision, batch, one, ceilings.get(key))


def _check(
    runs: Sequence[str | Path],
    batches: Sequence[int],
    precisions: Sequence[str],
    training: bool,
    optimized: bool,
    rounds: int,
) -> None:
    if not runs:
        raise UserError("bench needs a run folder or a model's name; `vitrail models` lists them")
    if min(batches, default=0) < 1 or rounds < 1:
        raise UserError(f"batches are {list(batches)} and rounds {rounds}; all must be at least 1")
    if set(precisions) == {"int8"} and not optimized:
        raise UserError("int8 exists only as what `vitrail.optimize` makes of a model; add --optimized")
    if training and set(precisions) == {"int8"}:
        raise UserError("int8 is no precision to train in; add fp32 or bf16 to --precisions")
    for name in runs:
        load(name)


def _speed(model: str, how: str, precision: Precision, batch: int, one: Measured, ceiling: Products | None) -> Speed:
    if one.failed:
        return Speed(model, how, precision, batch, None, None, None, None, None, None, None, one.failed)
    median = statistics.median(one.seconds)
    return Speed(
        model,
        how,
        precision,
        batch,
        median * 1e3,
        min(one.seconds) * 1e3,
        max(one.seconds) * 1e3,
        batch / median,
        one.peak - one.ready if best_device().type == "cpu" else None,
        ceiling.multiply_adds if ceiling else None,
        ceiling.seconds / median if ceiling else None,
    )


# ---------------------------------------------------------------------- contestants, each in a process of its own


def _loaded(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A model on this machine's device and images as it takes them, grey noise of unit deviation."""
    run, device = load(name), best_device()
    data = run.recipe.data
    images = torch.randn(batch, data.in_chans or 3, data.img_size or 1, data.img_size or 1, device=device)
    return run.model.to(device), images


def _finished() -> None:
    if best_device().type != "cpu":
        torch.accelerator.synchronize()


def _answering(name: str, batch: int, precision: Precision) -> Callable[[], object]:
    model, images = _loaded(name, batch)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, images = model.to(dtype), images.to(dtype)

    @torch.inference_mode()
    def work() -> None:
        model(images)
        _finished()

    return work


def _optimized(name: str, batch: int, precision: Precision) -> Callable[[], object]:
    model, images = _loaded(name, batch)
    answer = optimize(model, images, precision=precision)

    def work() -> None:
        answer(images)
        _finished()

    return work


def _training(name: str, batch: int, precision: Precision) -> Callable[[], object]:
    model, images = _loaded(name, batch)
    model.train()
    optimizer: Any = torch.optim.AdamW(model.parameters(), fused=True)
    labels = torch.zeros(batch, dtype=torch.long, device=images.device)

    def work() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _finished()

    return work
