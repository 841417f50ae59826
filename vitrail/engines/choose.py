"""The fastest engine of this machine for a model, among those whose outputs agree with the plain model's."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vitrail.engines import bf16x3, cache, eager, inductor, onnxruntime, openvino, torchao
from vitrail.engines.engine import PRECISIONS, Engine, Forward, Precision
from vitrail.engines.trial import (
    CALIBRATING,
    Ground,
    Trial,
    attempt,
    baseline,
    built,
    in_batches,
    refusal,
    speedup,
    untried,
)
from vitrail.errors import UserError

ENGINES = (
    openvino.INT8,
    bf16x3.ENGINE,
    openvino.ENGINE,
    eager.ENGINE,
    inductor.ENGINE,
    onnxruntime.ENGINE,
    torchao.ENGINE,
)
"""In the order in which they are tried: the likeliest first, for when time is short."""

KEPT = "kept"


class Optimized(nn.Module):
    """A model as its fastest engine runs it: (B, C, H, W) float32 -> logits float32, without gradients.

    `engine` and `precision` are the choice, `why` says it in a sentence, `report` has a row for each engine tried. It
    is built for batches of `batch_size`: more images are cut into such batches, fewer filled up.
    """

    def __init__(self, forward: Forward, shape: tuple[int, ...], choice: Trial, report: list[Trial], why: str):
        super().__init__()
        self._run, self._shape = forward, shape
        self.batch_size = shape[0]
        self.engine, self.precision, self.report, self.why = choice.engine, choice.precision, report, why

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self._shape[1:]:
            given, built = ("x".join(map(str, shape)) for shape in (images.shape[1:], self._shape[1:]))
            raise UserError(f"images are {given} and the model was optimized for {built}; optimize it for these")
        return in_batches(self._run, images, self.batch_size)


def optimize(
    model: nn.Module,
    example: Tensor,
    precision: Precision = "fp32",
    *,
    batch_size: int | None = None,
    agreement: float = 0.99,
    seconds: float = 300.0,
) -> Optimized:
    """The model as the fastest engine of this machine runs it, of those that are installed and agree with it.

    `example` (N, C, H, W) float32 are images prepared for the model, real ones at best, about 300: the
    first 100 calibrate int8, all show whether outputs agree. What is timed is a batch of `batch_size`, N unless given.
    `precision` is the coarsest allowed: the finer ones are tried too. An engine in fp32 is kept if no logit differs
    by more than 1e-4 of the largest one; a coarser one if at least `agreement` of the images keep their class. Near
    ties change first: of an untrained model, and of noise, expect few. No new engine is begun after `seconds`.

    The model stays as it is. The choice is remembered for this architecture, shape and machine (in VITRAIL_HOME or the
    user's cache folder), and built and compared anew each time. Raises UserError for what is no batch of images.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is '{precision}'; it is one of {', '.join(PRECISIONS)}")
    if example.ndim != 4 or example.dtype != torch.float32 or not len(example):
        raise UserError("optimize wants a batch of images as float32 (N, C, H, W), at least one")
    model = copy.deepcopy(model).eval().requires_grad_(False).float()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batch_size = batch_size or len(example)
    plain = eager.build(model, example, batch_size, "fp32")
    # a few show how far logits are; only whether classes are kept takes many
    example = (example[:CALIBRATING] if precision == "fp32" else example).to(device)
    ground = Ground(plain, example, in_batches(plain, example, batch_size), batch_size, agreement)
    shape = (batch_size, *example.shape[1:])
    digest = cache.question(model, shape, precision, agreement, str(device))
    return _again(digest, model, ground, shape) or _choose(digest, model, ground, shape, precision, seconds)


def _choose(
    digest: str, model: nn.Module, ground: Ground, shape: tuple[int, ...], precision: Precision, seconds: float
) -> Optimized:
    """Try them all."""
    begun = time.monotonic()
    best, forward = baseline(ground), ground.plain
    report = [best]
    with _progress() as say:
        for engine, kind in _candidates(ground.examples.device.type, precision):
            why = _obstacle(engine) or ("not tried: the time was over" if time.monotonic() - begun > seconds else "")
            trial, built = untried(engine, kind, why), None
            if not why:
                say(f"{engine.name} in {kind}")
                trial, built = attempt(engine, kind, model, ground)
            if built and speedup(trial, over=best) > 1:
                best, forward = trial, built
            report.append(trial)
    report = [_judged(trial, best) for trial in report]
    best = next(trial for trial in report if trial.verdict == KEPT)
    cache.remember(digest, {"report": [trial._asdict() for trial in report]})
    return Optimized(forward, shape, best, report, _why(best, report, ground))


def _again(digest: str, model: nn.Module, ground: Ground, shape: tuple[int, ...]) -> Optimized | None:
    """What was chosen before, if it can be built again and agrees."""
    answer = cache.recall(digest)
    try:
        report = [Trial(**row) for row in (answer or {})["report"]]
        best = next(trial for trial in report if trial.verdict == KEPT)
        if (best.engine, best.precision) == ("eager", "fp32"):
            return Optimized(ground.plain, shape, best, report, _why(best, report, ground))
        kind: Any = best.precision
        engine = next(engine for engine in ENGINES if engine.name == best.engine and kind in engine.precisions)
        with _progress() as say:
            say(f"{engine.name} in {kind}")
            forward, difference, agreement = built(engine, kind, model, ground)
    except Exception:  # damaged, of another version, or what was chosen no longer runs: choose anew
        return None
    best = best._replace(difference=difference, agreement=agreement)
    report = [best if trial.verdict == KEPT else trial for trial in report]
    return None if refusal(best, ground) else Optimized(forward, shape, best, report, _why(best, report, ground))


def _candidates(device: str, precision: Precision) -> list[tuple[Engine, Precision]]:
    """Every engine with every precision that is allowed, the coarsest first, except eager fp32: the yardstick."""
    allowed = PRECISIONS[PRECISIONS.index(precision) :: -1]
    found = [(engine, kind) for kind in allowed for engine in ENGINES if kind in engine.precisions]
    return [
        (engine, kind)
        for engine, kind in found
        if device in engine.devices and (engine, kind) != (eager.ENGINE, "fp32")
    ]


def _obstacle(engine: Engine) -> str:
    missing = engine.missing()
    return f"not installed: {', '.join(missing)} (pip install 'vitrail[fast]')" if missing else engine.obstacle()


def _judged(trial: Trial, best: Trial) -> Trial:
    if trial is best:
        return trial._replace(verdict=KEPT)
    return trial if trial.verdict else trial._replace(verdict=f"slower than {best.engine} in {best.precision}")


def _why(best: Trial, report: list[Trial], ground: Ground) -> str:
    """The choice in a sentence or two."""
    looked_at = min(len(ground.examples), CALIBRATING) if best.precision == "fp32" else len(ground.examples)
    images = f"{looked_at} image{'s' * (looked_at > 1)}"
    missing = [trial.engine for trial in report if trial.verdict.startswith("not installed")]
    rest = f" Not installed: {', '.join(dict.fromkeys(missing))}; pip install 'vitrail[fast]'." if missing else ""
    if (best.engine, best.precision) == ("eager", "fp32"):
        return f"The plain model in fp32: no other engine was faster and agreed on {images}.{rest}"
    times = speedup(best, over=report[0])
    return (
        f"{best.engine} in {best.precision}: {times:.1f} times as fast as the plain model in fp32 on batches of "
        f"{ground.batch_size}; logits differ by {best.difference:.1e} (relative), {best.agreement:.1%} of {images} "
        f"keep their class.{rest}"
    )


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A line on a terminal's standard error that says what is being tried."""
    console = Console(file=sys.stderr, highlight=False, quiet=not sys.stderr.isatty())
    with console.status("optimizing") as status:
        yield lambda text: status.update(f"optimizing: {text}")
