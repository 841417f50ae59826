"""Runs of a second: the recipe, what they leave, and how to stop one."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitrail.errors import Interrupted
from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule
from vitrail.training import loop


def tiny(**changes: Any) -> Recipe:
    """96 digits, two epochs of three steps, all that is random on; `data__limit=64` changes recipe.data.limit."""
    recipe = Recipe(
        data=Data(limit=96, batch_size=32, workers=0),
        augment=Augment(crop="padded", crop_padding=1, rotate=10.0, mixup=0.2, cutmix=1.0),
        optim=Optim(lr=2e-3, clip_grad=1.0),
        schedule=Schedule(epochs=2, warmup_epochs=1.0),
        label_smoothing=0.1,
        drop_path=0.1,
        ema=0.99,
    )
    for path, value in changes.items():
        part, _, field = path.rpartition("__")
        recipe = replace(
            recipe, **({part: replace(getattr(recipe, part), **{field: value})} if part else {field: value})
        )
    return recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights."""
    return math.sqrt(sum(float(((a[key].double() - b[key].double()) ** 2).sum()) for key in a))


def stopping(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Have this process told to stop once `step` updates are done."""
    done = 0

    class Stopping(loop.Display):
        def step(self, epoch: int, loss: float, rate: float) -> None:
            nonlocal done
            done += 1
            if done == step:
                signal.raise_signal(number)
            super().step(epoch, loss, rate)

    monkeypatch.setattr(loop, "Display", Stopping)


def stopped(monkeypatch: pytest.MonkeyPatch, out: Path, step: int, recipe: Recipe) -> Path:
    """The folder of a run that was stopped after `step` updates."""
    with monkeypatch.context() as patched:
        stopping(patched, step)
        with pytest.raises(Interrupted):
            loop.fit(recipe, out)
    return out
