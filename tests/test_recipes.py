"""Every recipe runs: the same code as in earnest, on 8 images, in two steps; large images and models become small."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import vitrail
from torch import nn

from vitrail.models import describe
from vitrail.recipe import Recipe, from_json, smoke, to_json
from vitrail.recipes import find_recipe, list_recipes
from vitrail.run import build

SMALLER = {  # seconds and gigabytes, for weights that are thrown away
    "vit_base_patch16_224": "vit_tiny_patch16_224",
    "vit_small_patch16_224": "vit_tiny_patch16_224",
    "vit_small_patch16_384": "vit_tiny_patch16_384",
    "deit_base_patch16_224": "deit_tiny_patch16_224",
    "deit_small_patch16_224": "deit_tiny_patch16_224",
    "simple_vit_small_patch16_224": "simple_vit_tiny_patch16_224",
    "mixer_b16_224": "mixer_s32_224",
    "mixer_s16_224": "mixer_s32_224",
    "scaling_vit_gigantic_patch14_224": "scaling_vit_tiny_patch16_224",
}


@pytest.mark.parametrize("name", list_recipes())
def test_smoke(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = find_recipe(name)
    model = SMALLER.get(recipe.model, recipe.model)
    small = ["--data.img-size", 32] if describe(recipe.model)["config"]["img_size"] >= 224 else []
    said = vitrail("train", "digits", "--recipe", name, "--smoke", "--out", out, "--json", "--model", model, *small)
    assert said.code == 0, said.err
    assert said.json()["n"] == 8
    written = from_json((out / "recipe.json").read_text(encoding="utf-8"))
    assert (written.model, written.augment) == (model, recipe.augment)
    assert [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()] == [1]
    for file in ("model.safetensors", "classes.json", "report.html"):
        assert (out / file).stat().st_size, file


@pytest.mark.parametrize("name", ["vit/finetune", "masked_patches/finetune"])
def test_fine_tuning_as_vit_does_begins_with_ln_k(name: str) -> None:
    """A last layer of zeros: all logits are 0, whatever the images."""
    recipe = find_recipe(name)
    data = replace(recipe.data, img_size=32, in_chans=3)
    model = build(replace(recipe, model="vit_tiny_patch16_224", pretrained=False, data=data), 37).train()
    logits = model(torch.randn(4, 3, 32, 32)).detach()
    assert not logits.any()
    assert float(nn.functional.cross_entropy(logits, torch.arange(4))) == pytest.approx(math.log(37), abs=1e-6)


@pytest.mark.parametrize("name", ["augreg/none", "sam", "scaling_vit"])
def test_a_head_before_bce_begins_near_0(name: str) -> None:
    """The bias makes every class unlikely: with 0 the summed loss would begin at 1000 ln 2 = 693."""
    recipe = find_recipe(name)
    data = replace(recipe.data, img_size=32)
    model = build(replace(recipe, model="vit_tiny_patch16_224", data=data), 1000)
    logits = model(torch.randn(2, 3, 32, 32)).detach()
    targets = nn.functional.one_hot(torch.tensor([3, 4]), 1000).float()
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()
    assert 6 < float(loss) < 11


def test_a_grid_is_its_arguments() -> None:
    """AugReg: 7 levels, each with two weight decays and with or without regularisation."""
    from vitrail.recipes import augreg

    levels: list[Any] = [getattr(augreg, name.partition("/")[2]) for name in list_recipes() if "augreg/" in name]
    cells = [level(rate, decay) for level in levels for rate in (0.0, 0.1) for decay in (0.1, 0.03)]
    assert len({to_json(recipe) for recipe in cells}) == 28
    assert all(recipe.dropout == recipe.drop_path for recipe in cells)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_a_value(name: str) -> None:
    recipe = find_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe == find_recipe(name)
    assert from_json(to_json(recipe)) == recipe
    assert smoke(recipe).schedule.epochs == 1
    assert not smoke(recipe).pretrained
    assert (smoke(recipe).model, smoke(recipe).augment, smoke(recipe).optim) == (
        recipe.model,
        recipe.augment,
        recipe.optim,
    )
