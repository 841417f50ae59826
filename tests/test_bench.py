"""Timing in turns, ceilings against closed forms, and `vitrail bench` from end to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from command_line import vitrail
from torch import nn

from vitrail.comparison.bench import bench
from vitrail.comparison.ceiling import copy_bandwidth, products
from vitrail.comparison.contest import contest, ratio
from vitrail.errors import UserError


def sleeping(seconds: float, images: int) -> Callable[[], int]:
    def work() -> int:
        time.sleep(seconds)
        return images

    return work


def broken() -> Callable[[], None]:
    raise ValueError("no such peer")


def dying() -> Callable[[], None]:
    return partial(os.kill, os.getpid(), signal.SIGKILL)


def told() -> Callable[[], float]:
    seen = os.environ.get("VITRAIL_TEST_WORD", "")
    assert seen == "hello"
    return lambda: 1.0


def test_a_contest_divides_by_the_work_done_and_outlives_who_fails() -> None:
    found = contest(
        {
            "slow": partial(sleeping, 0.04, 2),
            "fast": partial(sleeping, 0.01, 2),
            "broken": broken,
            "dying": dying,
            "told": told,
        },
        rounds=2,
        warmup=1,
        environments={"told": {"VITRAIL_TEST_WORD": "hello"}},
    )
    assert len(found["slow"].seconds) == len(found["fast"].seconds) == len(found["told"].seconds) == 2
    assert 0.02 <= min(found["slow"].seconds) < 0.2
    ours = ratio(found["slow"], found["fast"])
    assert ours is not None
    assert ours.least <= ours.median <= ours.most
    assert ours.median > 1
    assert "no such peer" in found["broken"].failed
    assert "process ended" in found["dying"].failed
    assert ratio(found["broken"], found["fast"]) is None
    assert found["slow"].peak >= found["slow"].ready > 0
    assert "VITRAIL_TEST_WORD" not in os.environ


def test_products_of_a_linear_layer() -> None:
    layer, x = nn.Linear(32, 48), torch.randn(5, 7, 32)
    forward = 35 * 32 * 48
    with torch.inference_mode():
        assert products(lambda: layer(x)).multiply_adds == forward
    found = products(lambda: layer(x.requires_grad_()).sum().backward())
    assert found.multiply_adds == 3 * forward, "forward, and the gradients of weight and input"
    assert found.seconds > 0
    assert found.rate == 2 * found.multiply_adds / found.seconds


def test_products_are_told_apart_by_shape_and_counted() -> None:
    """Twice the layers take about twice the products' time: what is alike is timed once and counted often."""
    one, two = nn.Sequential(nn.Linear(64, 64)), nn.Sequential(*(nn.Linear(64, 64) for _ in range(2)))
    x = torch.randn(64, 64)
    with torch.no_grad():
        single, double = products(lambda: one(x)), products(lambda: two(x))
    assert double.multiply_adds == 2 * single.multiply_adds


def test_copying_has_a_rate() -> None:
    assert 1e8 < copy_bandwidth(torch.device("cpu")) < 1e13


def test_bench_measures_answers_and_training_in_turn() -> None:
    words = ("--batches", 2, "--training", "--rounds", 2, "--json")
    rows = vitrail("bench", "vit_pico_patch2_8", "resnet20", *words).json()
    assert [(row["model"], row["how"]) for row in rows["speeds"]] == [
        ("vit_pico_patch2_8", "eager"),
        ("vit_pico_patch2_8", "training"),
        ("resnet20", "eager"),
        ("resnet20", "training"),
    ]
    for row in rows["speeds"]:
        assert row["failed"] == ""
        assert row["least"] <= row["milliseconds"] <= row["most"]
        assert row["images_per_s"] == pytest.approx(2e3 / row["milliseconds"])
        assert row["ceiling_share"] > 0
        assert row["memory"] >= 0
    answers, steps = rows["speeds"][:2]
    assert (
        2.5 < steps["multiply_adds"] / answers["multiply_adds"] < 3.2
    )  # attention's backward computes its weights anew


@pytest.mark.parametrize(
    ("runs", "options", "said"),
    [
        ([], {}, "needs a run folder"),
        (["vit_pico_patch2_8"], {"batches": (0,)}, "at least 1"),
        (["vit_pico_patch2_8"], {"precisions": ("int8",)}, "--optimized"),
        (["vit_pikko"], {}, "neither a run folder nor a model"),
    ],
)
def test_bench_refuses(runs: list[str], options: dict[str, tuple[object, ...]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        next(bench(runs, **options))  # type: ignore[arg-type]
