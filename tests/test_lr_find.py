"""The learning-rate range test: its rule against fastai's, its curve from the training loop itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import vitrail
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import read, tiny

from vitrail import recipes
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.training import loop, lr_find
from vitrail.training.lr_find import RangeTest, smoothed, valley

LOSSES = st.lists(st.floats(0, 5).map(lambda x: round(x, 1)), min_size=2, max_size=60)


def fastai_valley(losses: list[float]) -> int:
    """fastai's own steps: each loss looks back, and the longest descent so far is noted as soon as it is beaten."""
    longest, begin, end = [1] * len(losses), 0, 0
    for here in range(1, len(losses)):
        for before in range(here):
            if losses[here] < losses[before] and longest[here] < longest[before] + 1:
                longest[here] = longest[before] + 1
            if longest[end] < longest[here]:
                end = here
                begin = end - longest[end]
    third = (end - begin) / 3
    return begin + int(third) + int(third / 2)


@given(LOSSES)
def test_valley_is_fastai_s(losses: list[float]) -> None:
    found, expected = valley(losses), fastai_valley(losses)
    if all(a <= b for a, b in itertools.pairwise(losses)):
        assert found is None, "nothing falls"
    else:
        assert found == max(expected, 0), "there, -1 would be the last place of all"


def test_valley_of_a_known_curve() -> None:
    """Ten flat, thirty falling, ten rising: 31 members, from place 8 on, and 10 + 5 places into them."""
    curve = [1.0] * 10 + [1 - 0.03 * k for k in range(1, 31)] + [0.2 + 0.1 * k for k in range(10)]
    assert valley(curve) == 8 + 10 + 5
    assert valley(curve[10:40]) == -1 + 10 + 5
    assert valley([1.0, 2.0, 3.0]) is None


def test_smoothed() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    weights = 0.98 ** np.arange(4)[::-1]
    losses = [4.0, 2.0, 7.0, 1.0]
    assert smoothed(losses)[-1] == pytest.approx(float((weights * losses).sum() / weights.sum()))


@pytest.fixture(scope="module")
def digits() -> Recipe:
    quickstart = recipes.find_recipe("quickstart")
    return replace(quickstart, data=replace(quickstart.data, limit=400))


@pytest.fixture(scope="module")
def found(digits: Recipe) -> RangeTest:
    return lr_find.lr_find(digits)


def test_what_it_suggests_on_digits_trains(digits: Recipe, found: RangeTest, tmp_path: Path) -> None:
    assert 3e-4 < found.suggestion < 3e-2
    assert found.lrs[0] == pytest.approx(1e-7)
    assert found.lrs[1] / found.lrs[0] == pytest.approx(1e8**0.01)
    assert len(found.lrs) == len(found.losses) == len(found.smoothed) > 60
    short = replace(digits, schedule=replace(digits.schedule, epochs=8, warmup_epochs=1.0))
    reached = [
        read(loop.fit(replace(short, optim=replace(short.optim, lr=lr)), tmp_path / f"{lr:g}"), "final.json")["top1"]
        for lr in (found.suggestion, found.suggestion / 30)
    ]
    assert reached[0] > 0.4
    assert reached[1] < 0.2, "chance is 0.1"


def test_nothing_is_kept_and_all_is_repeatable(
    digits: Recipe, found: RangeTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = lr_find.lr_find(digits, updates=30)
    assert again == lr_find.lr_find(digits, updates=30)
    assert again.losses[0] == found.losses[0]
    assert not list(tmp_path.iterdir())


def test_a_rate_is_meant_as_the_recipe_means_it() -> None:
    """lr_batch 16 and batches of 32: the optimiser's rate is twice that of the recipe, here as in training."""
    recipe = tiny()
    scaled = lr_find.lr_find(replace(recipe, optim=replace(recipe.optim, lr_batch=16)), updates=40)
    plain = lr_find.lr_find(recipe, lowest=2e-7, highest=20.0, updates=40)
    assert scaled.losses == pytest.approx(plain.losses)
    assert scaled.suggestion == pytest.approx(plain.suggestion / 2)


def test_it_ends_where_the_loss_explodes() -> None:
    recipe = tiny(optim__clip_grad=None)
    test = lr_find.lr_find(replace(recipe, optim=replace(recipe.optim, name="sgd", lr=1.0)), highest=1e6)
    assert "rose above 4 times" in test.ended or "became" in test.ended
    assert len(test.losses) < 100
    assert test.suggestion < 100


def test_a_loss_that_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter(range(1, 1000))
    monkeypatch.setattr(loop.Trainer, "update", lambda *_: 100.0 + next(rising))
    with pytest.raises(UserError, match="did not fall at any of the 100 learning rates from 1e-07 to 8"):
        lr_find.lr_find(tiny())


def test_a_loss_that_is_wrong_from_the_start_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(*_: object) -> float:
        raise UserError("the loss became nan at step 0")

    monkeypatch.setattr(loop.Trainer, "update", update)
    with pytest.raises(UserError, match="became nan at step 0"):
        lr_find.lr_find(tiny())


def test_command(tmp_path: Path) -> None:
    small = ["--data.limit", 64, "--data.batch-size", 16]
    said = vitrail("lr-find", "digits", *small, "--out", tmp_path / "deep" / "found.png")
    assert said.code == 0, said.err
    word, flag, value = said.out.split()
    assert (word, flag) == ("suggested", "--optim.lr")
    assert 1e-6 < float(value) < 10
    with Image.open(tmp_path / "deep" / "found.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    said = vitrail("lr-find", *small, "--out", tmp_path / "found.png", "--json")
    assert said.json()["suggestion"] == pytest.approx(float(value), rel=0.05)
    assert said.json()["picture"] == str(tmp_path / "found.png")
    assert vitrail("lr-find", "--out", tmp_path / "deep" / "found.png" / "x.png", *small).code == 1
    assert vitrail("lr-find", "--resume", "x").code == 2
