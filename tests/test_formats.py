"""Export: what is written gives the model's logits, carries its classes, and a file that does not is not kept."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrail import formats
from vitrail.errors import UserError
from vitrail.formats import export
from vitrail.models import create_model
from vitrail.recipe import Data, Recipe
from vitrail.run import Run

CLASSES = ["cat", "dög", "猫"]


def run_of(model: nn.Module) -> Run:
    data = Data(source="", img_size=32, in_chans=3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    return Run(model.eval(), Recipe(model="vit_tiny_patch16_224", data=data), CLASSES, "random weights", None)


@pytest.fixture(scope="module")
def vit() -> Run:
    torch.manual_seed(0)
    return run_of(
        create_model(
            "vit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=2, img_size=32, patch_size=8, num_classes=3
        )
    )


@pytest.fixture
def plain() -> Run:
    """The smallest model with everything that can go wrong: running statistics, shared weights, a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model.add_module("twin", nn.Linear(3, 3))
    model.add_module("twin_again", model.get_submodule("twin"))
    return run_of(model)


def about(values: dict[str, str]) -> dict[str, object]:
    return {key: json.loads(values[key]) for key in ("classes", "mean", "img_size")}


PREPARED = {"classes": CLASSES, "mean": [0.4, 0.5, 0.6], "img_size": 32}


def test_safetensors_carry_weights_and_preparation(vit, tmp_path):
    from safetensors import safe_open

    path = export(vit, tmp_path / "model.safetensors")
    assert path.stat().st_mode & 0o777 == 0o644
    with safe_open(path, "pt") as file:
        assert about(file.metadata()) == PREPARED
        assert set(file.keys()) == set(vit.model.state_dict())


def test_a_torch_export_takes_any_batch(vit, tmp_path):
    path = export(vit, tmp_path / "model.pt2")
    extra = {"vitrail.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert about(json.loads(extra["vitrail.json"])) == PREPARED
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program(images), vit.model(images))


def test_onnx_takes_any_batch(vit, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = export(vit, tmp_path / "model.onnx")
    assert about({p.key: p.value for p in onnx.load(path).metadata_props}) == PREPARED
    session = runtime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    images = torch.randn(5, 3, 32, 32)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), vit.model(images), rtol=1e-4, atol=1e-5)
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("ending", ["safetensors", "pt2", "onnx"])
def test_a_plain_convolutional_model_is_exported(plain, tmp_path, ending, caplog):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    before = {key: value.clone() for key, value in plain.model.state_dict().items()}
    export(plain, tmp_path / f"model.{ending}")
    assert "its logits differ by" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in plain.model.state_dict().items())


@pytest.mark.parametrize("harm", [lambda y: y + 1e-2, lambda y: y[:1].expand_as(y), lambda y: y * torch.nan])
def test_a_file_that_gives_other_logits_is_removed(plain, tmp_path, monkeypatch, harm):
    write, read = formats.FORMATS[".safetensors"]

    def wrong(model: nn.Module, path: Path) -> formats.Forward:
        forward = read(model, path)
        return lambda images: harm(forward(images))

    monkeypatch.setitem(formats.FORMATS, ".safetensors", (write, wrong))
    kept = tmp_path / "model.safetensors"
    kept.write_text("what was there before")
    with pytest.raises(UserError, match="was not kept"):
        export(plain, kept)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert kept.read_text() == "what was there before"


def test_weights_missing_from_the_file_do_not_pass(plain, tmp_path, monkeypatch):
    _, read = formats.FORMATS[".safetensors"]

    def forgetful(model: nn.Module, images: torch.Tensor, facts: dict[str, str], path: Path) -> None:
        stripped = nn.Sequential(*list(model.children())[:3])
        formats._write_safetensors(stripped, images, facts, path)

    monkeypatch.setitem(formats.FORMATS, ".safetensors", (forgetful, read))
    with pytest.raises(RuntimeError, match="Missing key"):
        export(plain, tmp_path / "model.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "hint"), [("m.onxx", "'.onnx'"), ("m.safetensor", "'.safetensors'"), ("m", ".pt2")])
def test_an_unknown_ending_is_refused(plain, tmp_path, name, hint):
    with pytest.raises(UserError, match="cannot tell the format") as error:
        export(plain, tmp_path / name)
    assert hint in str(error.value)


def test_a_folder_that_does_not_exist_is_refused(plain, tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        export(plain, tmp_path / "none" / "model.pt2")


def test_a_folder_in_the_place_of_the_file_is_refused(plain, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        export(plain, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_without_onnx_the_command_is_told(plain, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "onnxscript":
            raise ImportError("gone", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'vitrail\[export\]'"):
        export(plain, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_a_model_beyond_what_one_onnx_file_holds_is_refused(plain, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(formats, "ONNX_LIMIT", 100)
    with pytest.raises(UserError, match=r"export to \.pt2 or \.safetensors"):
        export(plain, tmp_path / "model.onnx")
