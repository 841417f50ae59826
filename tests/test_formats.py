"""Export: what is written gives the model's logits, carries its classes, and a file that does not is not kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from vitrail import formats
from vitrail.engines import engine
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


def test_openvino_takes_any_batch(vit, tmp_path):
    openvino = pytest.importorskip("openvino")
    path = export(vit, tmp_path / "model.xml")
    graph = openvino.Core().read_model(path)
    assert about({key: graph.get_rt_info(["vitrail", key]).astype(str) for key in PREPARED}) == PREPARED
    images = torch.randn(5, 3, 32, 32)
    logits = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(logits), vit.model(images), rtol=1e-4, atol=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["model.bin", "model.xml"]


def test_openvino_in_int8_is_scaled_by_images(vit, tmp_path, caplog):
    pytest.importorskip("nncf")
    torch.nn.init.constant_(vit.model.head.bias[:1], 5.0)  # an untrained model's classes are near ties
    photographs = [tmp_path / f"{number}.png" for number in range(2)]
    for file in photographs:
        Image.effect_noise((32, 32), 100).convert("RGB").save(file)
    export(vit, tmp_path / "model.xml", int8=photographs)
    assert "images keep their class" in caplog.text
    assert 'element_type="i8"' in (tmp_path / "model.xml").read_text()
    with pytest.raises(UserError, match="cannot be in int8"):
        export(vit, tmp_path / "model.onnx", int8=photographs)


@pytest.mark.parametrize("ending", ["safetensors", "pt2", "onnx", "xml"])
def test_a_plain_convolutional_model_is_exported(plain, tmp_path, ending, caplog):
    if ending in ("onnx", "xml"):
        pytest.importorskip({"onnx": "onnxruntime", "xml": "openvino"}[ending])
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


@pytest.mark.parametrize(("ending", "package"), [("onnx", "onnxscript"), ("xml", "openvino")])
def test_without_the_package_the_command_is_told(plain, tmp_path, monkeypatch, ending, package):
    real = engine.version
    monkeypatch.setattr(engine, "version", lambda name: None if name == package else real(name))
    extra = "fast" if ending == "xml" else "export"
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'vitrail\[{extra}\]'"):
        export(plain, tmp_path / f"model.{ending}")
    assert not os.listdir(tmp_path)


def test_a_model_beyond_what_one_onnx_file_holds_is_refused(plain, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(formats, "ONNX_LIMIT", 100)
    with pytest.raises(UserError, match=r"export to \.pt2 or \.safetensors"):
        export(plain, tmp_path / "model.onnx")
