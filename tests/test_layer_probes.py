"""Linear probes by layer: features that are the labels, labels that mean nothing, the last layer's few-shot probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_data
from PIL import Image
from test_models import tiny
from torch import Tensor, nn

from vitrail.comparison import layer_probes as module
from vitrail.comparison.layer_probes import LayerProbes, layer_probes
from vitrail.data.arrays import ArraySplit
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.models import create_model
from vitrail.run import Run, load
from vitrail.training.probe import probe


class Pixels(nn.Module):
    """Two blocks: the picture, then nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1))
        nn.init.zeros_(self.blocks.get_submodule("1").get_parameter("weight"))

    def trunk(self) -> list[str]:
        return ["blocks.0", "blocks.1"]

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


def coloured(images: int, seed: int, shuffled: bool) -> ArraySplit:
    """Noise in which one of three channels is brighter: the class, unless the labels are shuffled."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    pixels = rng.integers(0, 60, (images, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(images), :, :, labels] += 100
    return ArraySplit(pixels, [int(k) for k in (rng.permutation(labels) if shuffled else labels)], "coloured")


def run_of(model: nn.Module, **changes: Any) -> Run:
    return Run(model.eval(), toy_data.recipe(**changes), ["a", "b", "c"], "by hand", None)


def probed(monkeypatch: pytest.MonkeyPatch, run: Run, shuffled: bool = False, **asked: Any) -> LayerProbes:
    splits: dict[str, Any] = {"train": coloured(90, 0, shuffled), "test": coloured(600, 1, shuffled)}
    monkeypatch.setattr(module, "source_of", lambda _run, _data: Source("coloured", ["a", "b", "c"], splits))
    return layer_probes(run, **asked)


def test_features_that_are_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, run_of(Pixels(), data__batch_size=100))
    assert found.layers == ["blocks.0", "blocks.1"]
    assert found.depth.tolist() == [0.5, 1.0]
    assert found.places.shape == found.cls.shape == (2, 3)
    assert (found.places[0] == 1).all()
    assert found.places[1] == pytest.approx(1 / 3), "constant features give one class"
    assert np.isnan(found.cls).all()
    assert found.chance == pytest.approx(1 / 3)
    assert (found.n, found.split, found.data, found.weights) == (600, "test", "coloured", "by hand")
    assert 30 < found.n_train <= 90, "three draws of 30, not all alike"


def test_labels_that_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, run_of(Pixels(), data__batch_size=100), shuffled=True, seeds=5)
    assert found.places[0].mean() == pytest.approx(1 / 3, abs=0.06)


def test_no_more_images_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, run_of(Pixels()), most=7, shots=2, seeds=1)
    assert (found.n, found.n_train, found.places.shape) == (7, 6, (2, 1))
    assert found.fewer == []
    assert probed(monkeypatch, run_of(Pixels()), most=7, shots=31, seeds=1).fewer == ["a", "b", "c"]


def test_a_class_token_that_joins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, run_of(tiny("convit_tiny"), data__img_size=32), most=60, seeds=2)
    assert found.layers == [f"blocks.{i}" for i in range(3)]
    assert np.isfinite(found.places).all()
    assert np.isnan(found.cls[:2]).all(), "local blocks have no class token"
    assert np.isfinite(found.cls[2]).all()


@pytest.fixture(scope="module")
def digits() -> Run:
    """An untrained model and 120 digits each to fit on and to score."""
    run = load("vit_pico_patch2_8")
    return run._replace(recipe=replace(run.recipe, data=replace(run.recipe.data, limit=120, workers=0)))


def test_the_last_layer_s_is_the_few_shot_probe(digits: Run) -> None:
    """Of a model that averages its places, without the norm between."""
    torch.manual_seed(0)
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 10}
    model: Any = create_model("vit_base_patch16_gap_224", in_chans=digits.recipe.data.in_chans, **small).eval()
    model.norm = model.fc_norm = nn.Identity()
    run = digits._replace(model=model)
    found = layer_probes(run, "digits")
    row = next(row for row in probe(run, "digits", method="fewshot")["rows"] if row["shots"] == 10)
    assert found.places[-1].tolist() == pytest.approx(row["seeds"])
    assert len(set(found.places[:, 0])) > 1, "layers differ"
    assert not model.training


def test_untrained_features_of_digits(digits: Run) -> None:
    found = layer_probes(digits, "digits")
    assert len(found.layers) == 4
    assert (found.places > 2 * found.chance).all()
    assert (found.cls > 2 * found.chance).all()
    assert found.run == "vit_pico_patch2_8"
    assert (found.n, found.fewer, found.damaged) == (120, [], [])
    assert np.array_equal(layer_probes(digits, "digits", batch_size=50).places, found.places)


def test_a_damaged_image_is_named_and_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (tmp_path / name).mkdir()
        for k in range(10):
            pixels = rng.integers(low, low + 100, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k:02}.png")
    broken = tmp_path / "dark" / "03.png"
    broken.write_bytes(broken.read_bytes()[:50])
    found = layer_probes("vit_pico_patch2_8", str(tmp_path))
    assert [Path(name).name for name in found.damaged] == ["03.png"]
    assert found.n + found.n_train == 19
    assert found.fewer == ["dark", "light"]
    assert (found.places == 1).all(), "dark from light"


def test_mistakes() -> None:
    for name in ("shots", "seeds", "most"):
        with pytest.raises(UserError, match=f"{name} is 0; give 1 or more"):
            layer_probes("vit_pico_patch2_8", "digits", **{name: 0})
    with pytest.raises(UserError, match="name the DATA"):
        layer_probes("vit_pico_patch2_8")
