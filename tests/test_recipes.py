"""Every recipe runs: the same code as in earnest, on 8 images, in two steps; where 224 pixels would be slow, on 32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import vitrail

from vitrail.models import describe
from vitrail.recipe import Recipe, from_json, smoke, to_json
from vitrail.recipes import find_recipe, list_recipes

LARGE = {"deit/base"}  # 86 million parameters: gigabytes on the disk, for one line of difference


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in list_recipes()]
)
def test_smoke(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = find_recipe(name)
    small = ["--data.img-size", 32] if describe(recipe.model)["config"]["img_size"] == 224 else []
    said = vitrail("train", "digits", "--recipe", name, "--smoke", "--out", out, "--json", *small)
    assert said.code == 0, said.err
    assert said.json()["n"] == 8
    written = from_json((out / "recipe.json").read_text(encoding="utf-8"))
    assert (written.model, written.augment) == (recipe.model, recipe.augment)
    assert [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()] == [1]
    for file in ("model.safetensors", "classes.json", "report.html"):
        assert (out / file).stat().st_size, file


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
