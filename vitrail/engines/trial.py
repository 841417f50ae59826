"""One engine on one model: built, compared with the plain model, timed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch

TOLERANCE = 1e-4
CALIBRATING = 100
"""So many images scale int8, and show how far logits are; whether classes are kept takes all there are."""
SECONDS = 1.0
"""For which an engine is timed."""


class Trial(NamedTuple):
    """One engine on one model; what was not found out is None."""

    engine: str
    precision: str
    seconds: float | None
    """Of a batch, the least: what other work on the machine adds is no property of an engine."""
    difference: float | None
    """Largest difference of logits over the largest logit."""
    agreement: float | None
    """Share of the images whose likeliest class is eager fp32's."""
    verdict: str
    """"kept", or why not."""


class Ground(NamedTuple):
    """What every trial is measured against."""

    plain: Forward
    examples: Tensor
    expected: Tensor
    batch_size: int
    least: float


def baseline(ground: Ground) -> Trial:
    return Trial("eager", "fp32", least_seconds(ground.plain, ground), 0.0, 1.0, "")


def untried(engine: Engine, kind: Precision, why: str) -> Trial:
    return Trial(engine.name, kind, None, None, None, why)


def attempt(engine: Engine, kind: Precision, model: nn.Module, ground: Ground) -> tuple[Trial, Forward | None]:
    """Build it, compare it, time it; the Forward is None unless it may be kept."""
    try:
        forward, difference, agreement = built(engine, kind, model, ground)
        seconds = least_seconds(forward, ground)
    except Exception as error:  # engines fail on models in any way they like, and the others go on
        return untried(engine, kind, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"), None
    trial = Trial(engine.name, kind, seconds, difference, agreement, "")
    why = refusal(trial, ground)
    return trial._replace(verdict=why), None if why else forward


def built(engine: Engine, kind: Precision, model: nn.Module, ground: Ground) -> tuple[Forward, float, float]:
    """The engine's Forward, and how far it agrees: relative difference, share of classes kept."""
    images = ground.examples[: CALIBRATING if kind == "fp32" else None]
    with _silence():
        forward = engine.build(copy.deepcopy(model), images[:CALIBRATING], ground.batch_size, kind)
        found = in_batches(forward, images, ground.batch_size)
    expected = ground.expected[: len(images)]
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    same = (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean()
    return forward, float(difference.nan_to_num(float("inf"))), float(same)


def refusal(trial: Trial, ground: Ground) -> str:
    """Why a trial may not be kept, or nothing."""
    assert trial.difference is not None
    assert trial.agreement is not None
    if trial.precision == "fp32" and not trial.difference < TOLERANCE:
        return f"logits differ by {trial.difference:.1e} (relative); {TOLERANCE:.0e} is allowed"
    if trial.agreement < ground.least or trial.difference == float("inf"):
        return f"{trial.agreement:.1%} of {len(ground.examples)} images keep their class; {ground.least:.0%} must"
    return ""


def speedup(trial: Trial, over: Trial) -> float:
    """How many times as fast; 0 of what was not timed."""
    return (over.seconds or 0.0) / trial.seconds if trial.seconds else 0.0


def least_seconds(forward: Forward, ground: Ground) -> float:
    """Seconds of a batch, the least of at least 3 passes, more while time lasts."""
    images = one_batch(ground.examples, ground.batch_size)
    took: list[float] = []
    begun = time.monotonic()
    while len(took) < 5 or (time.monotonic() - begun < SECONDS and len(took) < 100):
        start = time.perf_counter()
        forward(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        took.append(time.perf_counter() - start)
    return min(took[2:])  # the first ones warm up


def in_batches(forward: Forward, images: Tensor, batch_size: int) -> Tensor:
    """`forward`, which takes `batch_size` images at once, over (N, C, H, W): the last batch is filled up with zeros."""
    missing = -len(images) % batch_size if len(images) else batch_size
    full = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
    return torch.cat([forward(batch) for batch in full.split(batch_size)])[: len(images)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What engines say while they build is for their authors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
