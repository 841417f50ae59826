"""The learning rate against the papers' points, torch's and timm's schedulers, and its own bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from torch import nn

from vitrail.recipe import Data, Optim, Recipe, Schedule
from vitrail.training.schedule import learning_rate, scaled_for_batch

NAMES = ("cosine", "linear", "rsqrt", "constant")


def rates(schedule: Schedule, steps_per_epoch: int, peak: float = 1.0) -> list[float]:
    """One rate a step, and that of the step after the last."""
    steps = schedule.epochs * steps_per_epoch
    return [learning_rate(step, steps_per_epoch, peak, schedule) for step in range(steps + 1)]


def test_it_warms_up_peaks_and_ends_at_its_share() -> None:
    found = rates(Schedule(epochs=10, warmup_epochs=2.0, min_lr=0.1), 5, 3.0)
    assert found[:10] == pytest.approx([3.0 * (step + 1) / 11 for step in range(10)]), "first above 0, then straight"
    assert found[10] == max(found) == 3.0
    assert found[30] == pytest.approx(3.0 * (0.1 + 0.9 / 2)), "halfway down the cosine"
    assert found[50] == pytest.approx(0.3)
    assert learning_rate(0, 5, 3.0, Schedule(epochs=10, warmup_epochs=0)) == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_up_is_the_same_for_all(name: Any) -> None:
    found = rates(Schedule(name=name, epochs=4, warmup_epochs=1.5), 4)
    assert found[:7] == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1.0])


def test_linear_is_a_straight_line_to_its_share() -> None:
    found = rates(Schedule(name="linear", epochs=6, warmup_epochs=2.0, min_lr=0.2), 3, 5.0)
    assert found[6:] == pytest.approx([5.0 * (1 - 0.8 * step / 12) for step in range(13)])


def test_rsqrt_has_the_papers_points() -> None:
    """Scaling ViT: 1 / sqrt(2) one timescale after the warm-up; 0 at the end of the cooldown."""
    schedule = Schedule(name="rsqrt", epochs=20, warmup_epochs=2.0, timescale_epochs=3.0, cooldown_epochs=4.0)
    found = rates(schedule, 10, 8e-4)
    assert found[20] == 8e-4
    assert found[50] == pytest.approx(8e-4 / math.sqrt(2))
    assert found[160] == pytest.approx(8e-4 / math.sqrt(1 + 140 / 30)), "the cooldown begins"
    assert found[180] == pytest.approx(0.5 * 8e-4 / math.sqrt(1 + 160 / 30)), "halfway"
    assert found[200] == 0.0


def test_constant_falls_only_in_its_cooldown() -> None:
    found = rates(Schedule(name="constant", epochs=5, warmup_epochs=0, cooldown_epochs=2.0), 4, 2.0)
    assert found[:13] == [2.0] * 13
    assert found[13:] == pytest.approx([2.0 * left / 8 for left in range(7, -1, -1)])
    assert set(rates(Schedule(name="constant", epochs=5, warmup_epochs=0), 4)) == {1.0}


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_begins_after_the_frozen_epochs(name: Any) -> None:
    whole = Schedule(name=name, epochs=7, warmup_epochs=1.0, min_lr=0.1, frozen_epochs=3)
    found = rates(whole, 5, 0.3)
    assert found[:15] == [0.3] * 15
    assert found[15:] == rates(replace(whole, epochs=4, frozen_epochs=0), 5, 0.3)


def one_group(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr)


@pytest.mark.parametrize("least", [0.0, 0.25])
def test_cosine_and_linear_are_timms(least: float) -> None:
    """timm counts the steps after the warm-up from 0 where it is told that the warm-up is a prefix."""
    for name, kind in (("cosine", CosineLRScheduler), ("linear", PolyLRScheduler)):
        optimizer = one_group(0.4)
        power = {"power": 1.0} if name == "linear" else {}
        reference = kind(
            optimizer, t_initial=24, lr_min=0.4 * least, warmup_t=6, warmup_prefix=True, t_in_epochs=False, **power
        )
        schedule = Schedule(name=name, epochs=10, warmup_epochs=2.0, min_lr=least)  # type: ignore[arg-type]
        for step in range(6, 30):
            reference.step_update(step)
            assert learning_rate(step, 3, 0.4, schedule) == pytest.approx(optimizer.param_groups[0]["lr"]), name


def test_cosine_is_torchs() -> None:
    optimizer = one_group(0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.04)
    for step in range(30):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(step, 3, 0.4, Schedule(epochs=10, warmup_epochs=0, min_lr=0.1)) == pytest.approx(expected)
        optimizer.step()
        reference.step()


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 6),
    st.integers(1, 7),
    st.floats(0, 8),
    st.floats(0, 1),
    st.floats(0, 3),
    st.integers(0, 3),
)
def test_it_rises_then_falls_within_bounds(
    name: Any, epochs: int, steps: int, warmup: float, least: float, cooldown: float, frozen: int
) -> None:
    schedule = Schedule(
        name=name,
        epochs=epochs + frozen,
        warmup_epochs=warmup,
        min_lr=least,
        cooldown_epochs=min(cooldown, max(epochs - warmup, 0.0)),
        frozen_epochs=frozen,
    )
    found = rates(schedule, steps, 2.0)[:-1]
    assert all(0 < rate <= 2.0 for rate in found)
    assert found[: frozen * steps] == [2.0] * (frozen * steps)
    after = found[frozen * steps :]
    top = after.index(max(after))
    assert after[: top + 1] == sorted(after[: top + 1])
    assert after[top:] == sorted(after[top:], reverse=True)


def test_lr_follows_the_batch_size_once() -> None:
    recipe = Recipe(data=Data(batch_size=256), optim=Optim(lr=1e-3, lr_batch=64))
    scaled = scaled_for_batch(recipe)
    assert scaled.optim.lr == pytest.approx(4e-3)
    assert scaled_for_batch(scaled) == scaled
    assert scaled_for_batch(Recipe()) == Recipe()
