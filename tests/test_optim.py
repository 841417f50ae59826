"""The rules of training that need no run: which weights decay, learning rate, moving average, what numbers may be."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import tiny
from torch import nn

from vitrail.errors import UserError
from vitrail.models import create_model
from vitrail.recipe import Data, Optim, Recipe, Schedule
from vitrail.recipes import find_recipe
from vitrail.training.limits import RULES, check_numbers
from vitrail.training.optim import learning_rate, moving_average, optimizer, parameter_groups, scaled_for_batch


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("deit_tiny_distilled_patch16_224", {"cls_token", "dist_token", "pos_embed"}),
        ("vit_base_patch16_siglip_224", {"pos_embed", "attn_pool.latent"}),
        ("resnet18", set()),
    ],
)
def test_norms_biases_tokens_and_positions_do_not_decay(name: str, tokens: set[str]) -> None:
    with torch.device("meta"):
        model = create_model(name)
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    together = [id(parameter) for parameter in decayed["params"] + kept["params"]]
    assert sorted(together) == sorted(names), "every parameter once"
    spared = {names[id(parameter)] for parameter in kept["params"]}
    assert tokens <= spared
    assert all(name.endswith(".bias") or "norm" in name or name in tokens or "bn" in name or "downsample.1" in name
               for name in spared)  # fmt: skip
    assert not any(name.endswith("bias") or "norm" in name for name in set(names.values()) - spared)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])


def test_frozen_parameters_are_not_optimised() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [parameter.shape for group in groups for parameter in group["params"]] == [(2, 3), (2,)]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizer_is_the_recipes(name: Any, kind: type) -> None:
    made = optimizer(nn.Linear(2, 2), Optim(name=name, lr=0.25, weight_decay=0.5, betas=(0.8, 0.9)))
    assert type(made) is kind
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0]
    assert all(group["lr"] == 0.25 for group in made.param_groups)
    assert name == "sgd" or made.param_groups[0]["betas"] == (0.8, 0.9)
    assert name == "adamw" or (made.param_groups[0]["momentum"], made.param_groups[0]["nesterov"]) == (0.9, True)


def test_learning_rate_warms_up_peaks_and_ends_at_its_share() -> None:
    schedule = Schedule(epochs=10, warmup_epochs=2.0, min_lr=0.1)
    rates = [learning_rate(step, 5, 3.0, schedule) for step in range(51)]
    assert rates[:10] == pytest.approx([3.0 * (step + 1) / 11 for step in range(10)]), "first above 0, then straight"
    assert rates[10] == max(rates) == 3.0
    assert rates[30] == pytest.approx(3.0 * (0.1 + 0.9 / 2)), "halfway down the cosine"
    assert rates[50] == pytest.approx(0.3)
    assert learning_rate(0, 5, 3.0, Schedule(epochs=10, warmup_epochs=0)) == 3.0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 8), st.floats(0, 1))
def test_learning_rate_rises_then_falls_within_bounds(epochs: int, steps: int, warmup: float, least: float) -> None:
    schedule = Schedule(epochs=epochs, warmup_epochs=warmup, min_lr=least)
    rates = [learning_rate(step, steps, 2.0, schedule) for step in range(epochs * steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_lr_follows_the_batch_size_once() -> None:
    recipe = Recipe(data=Data(batch_size=256), optim=Optim(lr=1e-3, lr_batch=64))
    scaled = scaled_for_batch(recipe)
    assert scaled.optim.lr == pytest.approx(4e-3)
    assert scaled_for_batch(scaled) == scaled
    assert scaled_for_batch(Recipe()) == Recipe()


def test_moving_average_is_its_closed_form() -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    model = nn.Sequential(linear, norm)
    averaged = moving_average(model, 0.5)
    torch.manual_seed(0)
    expected = torch.zeros(2, 2)
    for t in range(12):
        value, mean = torch.randn(2, 2), torch.randn(2)
        with torch.no_grad():
            linear.weight.copy_(value)
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("num_batches_tracked").fill_(t)
        averaged.update_parameters(model)
        share = min(0.5, (1 + t) / (10 + t)) if t else 0.0
        expected = share * expected + (1 - share) * value
    assert share == 0.5, "the decay itself is reached"
    average = averaged.module.state_dict()
    assert torch.allclose(average["0.weight"], expected, atol=1e-6)
    assert int(average["1.num_batches_tracked"]) == 11
    assert not torch.equal(average["1.running_mean"], mean), "buffers are averaged too"


@pytest.mark.parametrize("field", RULES)
def test_a_number_that_means_nothing_is_refused(field: str) -> None:
    check_numbers(tiny())
    value = attrgetter(field)(tiny())
    wrong = [(math.nan, 0.9), (0.9, 1.0)] if isinstance(value, tuple) else [math.nan, -1]
    for number in wrong:
        with pytest.raises(UserError, match=rf"^--{field.replace('_', '-')} is .*; it must be "):
            check_numbers(tiny(**{field.replace(".", "__"): number}))


@pytest.mark.parametrize("name", ["deit", "deit/small", "finetune", "quickstart", "scratch", "scratch/small_images"])
def test_published_recipes_have_numbers_that_mean_something(name: str) -> None:
    recipe = find_recipe(name)
    check_numbers(recipe)
    with pytest.raises(UserError, match=r"^--optim\.lr is nan"):
        check_numbers(replace(recipe, optim=replace(recipe.optim, lr=math.nan)))
