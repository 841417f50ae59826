"""Weights of every origin give the model they came from; what differs is said; what does not fit is refused by name."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import family
from rows import ROWS, Row
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.models import create_model, list_models
from vitrail.recipe import Data, Recipe
from vitrail.run import save_weights, start
from vitrail.weights import load_weights, official
from vitrail.weights.files import fetch, read_state_dict
from vitrail.weights.fit import adapt_channels
from vitrail.weights.official import imagenet_classes, table
from vitrail.weights.unfilled import unfilled

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 32}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter drawn anew: zero biases and unit norms would hide a mix-up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def theirs(name: str = NAME, **changes: Any) -> Any:
    return randomised(timm.create_model(name, **{**TINY, **changes}))


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def assert_same_logits(ours: nn.Module, reference: nn.Module, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    with torch.no_grad():
        want = reference(x)
        got = ours.eval()(x)
    assert ((got - want).norm() / want.norm()).item() < 1e-5


def savez(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def saved(model: nn.Module | dict[str, Tensor], path: Path) -> Path:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return path


# Google's layout, written from timm's keys.


def as_jax(model: nn.Module, numbering: str) -> dict[str, np.ndarray]:
    """`model` (timm) as google-research/vision_transformer ("vit_jax") or big_vision would save it."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    attention, norm2, mlp = {
        "vit_jax": ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
        "big_vision": ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
    }[numbering]
    dim, heads = TINY["embed_dim"], TINY["num_heads"]
    out: dict[str, np.ndarray] = {}

    def norm(to: str, key: str) -> None:
        out[f"{to}/scale"], out[f"{to}/bias"] = state[f"{key}.weight"], state[f"{key}.bias"]

    def dense(to: str, key: str) -> None:
        out[f"{to}/kernel"], out[f"{to}/bias"] = state[f"{key}.weight"].T, state[f"{key}.bias"]

    def heads_of(to: str, names: list[str], weight: np.ndarray, bias: np.ndarray) -> None:
        for n, each in enumerate(names):
            rows = slice(n * dim, (n + 1) * dim)
            out[f"{to}/{each}/kernel"] = weight[rows].T.reshape(dim, heads, dim // heads)
            out[f"{to}/{each}/bias"] = bias[rows].reshape(heads, dim // heads)

    def projection(to: str, key: str) -> None:
        out[f"{to}/out/kernel"] = state[f"{key}.weight"].T.reshape(heads, dim // heads, dim)
        out[f"{to}/out/bias"] = state[f"{key}.bias"]

    out["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    out["embedding/bias"] = state["patch_embed.proj.bias"]
    table_name = "Transformer/posembed_input/pos_embedding" if numbering == "vit_jax" else "pos_embedding"
    out[table_name] = state["pos_embed"]
    if "cls_token" in state:
        out["cls"] = state["cls_token"]
    for n in range(TINY["depth"]):
        block, key = f"Transformer/encoderblock_{n}", f"blocks.{n}"
        norm(f"{block}/LayerNorm_0", f"{key}.norm1")
        norm(f"{block}/{norm2}", f"{key}.norm2")
        qkv = state[f"{key}.attn.qkv.weight"], state[f"{key}.attn.qkv.bias"]
        heads_of(f"{block}/{attention}", ["query", "key", "value"], *qkv)
        projection(f"{block}/{attention}", f"{key}.attn.proj")
        dense(f"{block}/{mlp}/Dense_0", f"{key}.mlp.fc1")
        dense(f"{block}/{mlp}/Dense_1", f"{key}.mlp.fc2")
    norm("Transformer/encoder_norm", "norm")
    if "attn_pool.latent" in state:
        pool, inside = "MAPHead_0", "MAPHead_0/MultiHeadDotProductAttention_0"
        out[f"{pool}/probe"] = state["attn_pool.latent"]
        heads_of(inside, ["query"], state["attn_pool.q.weight"], state["attn_pool.q.bias"])
        heads_of(inside, ["key", "value"], state["attn_pool.kv.weight"], state["attn_pool.kv.bias"])
        projection(inside, "attn_pool.proj")
        norm(f"{pool}/LayerNorm_0", "attn_pool.norm")
        dense(f"{pool}/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1")
        dense(f"{pool}/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2")
    dense("head", "head")
    return out


def scanned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's blocks as one subtree with a leading axis of depth."""
    first = "Transformer/encoderblock_0/"
    out = {key: value for key, value in arrays.items() if "encoderblock_" not in key}
    for key in [key for key in arrays if key.startswith(first)]:
        parts = [arrays[key.replace("block_0", f"block_{n}")] for n in range(TINY["depth"])]
        out[key.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    return out


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_google_checkpoint_gives_the_same_logits(tmp_path: Path, prefix: str) -> None:
    reference = theirs()
    arrays = {prefix + key: value for key, value in as_jax(reference, "vit_jax").items()}
    savez(tmp_path / "w.npz", **arrays)
    assert_same_logits(create_model(NAME, tmp_path / "w.npz", **TINY), reference)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch16_siglip_gap_224"])
def test_big_vision_checkpoint_gives_the_same_logits(tmp_path: Path, name: str, scan: bool) -> None:
    reference = theirs(name)
    arrays = as_jax(reference, "big_vision")
    savez(tmp_path / "w.npz", **(scanned(arrays) if scan else arrays))
    assert_same_logits(create_model(name, tmp_path / "w.npz", **TINY), reference)


def test_big_vision_adds_positions_before_the_class_token(tmp_path: Path) -> None:
    reference = theirs()
    with torch.no_grad():
        reference.pos_embed[:, 0] = 0  # so that timm's order, token first, computes what big_vision's does
    arrays = as_jax(reference, "big_vision")
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    savez(tmp_path / "w.npz", **arrays)
    assert_same_logits(create_model(NAME, tmp_path / "w.npz", **TINY), reference)


def test_googles_hybrids_name_a_resnet(tmp_path: Path) -> None:
    tiny = {**TINY, "patch_size": 1, "layers": (1, 2)}
    ours: Any = create_model("vit_small_r26_s32_224", **tiny)
    randomised(ours)
    arrays = as_jax(ours, "vit_jax")
    for key, value in ours.state_dict().items():
        found = re.fullmatch(r"patch_embed\.backbone\.(?:stages\.(\d)\.blocks\.(\d)|stem)\.(.+)\.(weight|bias)", key)
        if found:
            stage, unit, part, kind = found.groups()
            place = f"block{int(stage) + 1}/unit{int(unit) + 1}/" if stage else ""
            part = re.sub(r"downsample\.(\w+)", r"\1_proj", part) if stage else f"{part}_root"
            leaf = "bias" if kind == "bias" else "kernel" if "conv" in part else "scale"
            array = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.view(1, 1, 1, -1)
            arrays[f"{place}{part.replace('norm', 'gn')}/{leaf}"] = array.numpy()
    savez(tmp_path / "w.npz", **arrays)
    again = create_model("vit_small_r26_s32_224", tmp_path / "w.npz", **tiny)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


def test_googles_mixers(tmp_path: Path) -> None:
    ours: Any = create_model("mixer_s32_224", depth=2)
    randomised(ours)
    names = {"fc1": "Dense_0", "fc2": "Dense_1", "norm1": "LayerNorm_0", "norm2": "LayerNorm_1", "weight": "kernel"}
    names |= {"mlp_tokens": "token_mixing", "mlp_channels": "channel_mixing", "norm": "pre_head_layer_norm"}
    arrays = {}
    for key, value in ours.state_dict().items():
        flax = "/".join(names.get(part, part) for part in key.replace("blocks.", "MixerBlock_").split("."))
        flax = flax.replace("proj/", "").replace("kernel", "scale" if "norm" in key else "kernel")
        arrays[flax] = (value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value).numpy()
    savez(tmp_path / "w.npz", **arrays)
    again = create_model("mixer_s32_224", tmp_path / "w.npz", depth=2)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


def test_image_tower_is_taken_from_an_image_text_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = theirs("vit_base_patch16_siglip_224")
    arrays = {f"params/img/{key}": value for key, value in as_jax(reference, "big_vision").items()}
    savez(tmp_path / "w.npz", **arrays, **{"params/txt/head/bias": np.zeros(3), "params/t": np.zeros(1)})
    assert_same_logits(create_model("vit_base_patch16_siglip_224", tmp_path / "w.npz", **TINY), reference)
    assert "2 arrays outside the image tower left out" in caplog.text


def test_bfloat16_arrays_of_jax_are_read(tmp_path: Path) -> None:
    value = torch.randn(3, 4).bfloat16()
    savez(tmp_path / "w.npz", a=value.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_state_dict(tmp_path / "w.npz")["a"], value.float())


# Other libraries.


@pytest.mark.parametrize("hidden", [None, 10])
def test_torchvision_vit_gives_the_same_logits(tmp_path: Path, hidden: int | None) -> None:
    from torchvision.models import VisionTransformer

    reference = randomised(VisionTransformer(32, 8, 2, 2, 24, 96, num_classes=5, representation_size=hidden))
    model: Any = create_model(
        NAME, saved(reference, tmp_path / "w.safetensors"), representation_size=hidden or 0, **TINY
    )
    assert_same_logits(model, reference)


def transformers_config(kind: str) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=5,
        layer_norm_eps=1e-6,
    )


class Logits(nn.Module):
    """transformers' models as functions of images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


@pytest.mark.parametrize("as_saved", [True, False])
@pytest.mark.parametrize(
    ("kind", "cls", "name"),
    [
        ("ViT", "ViTForImageClassification", NAME),
        ("DeiT", "DeiTForImageClassification", NAME),
        ("DeiT", "DeiTForImageClassificationWithTeacher", "deit_tiny_distilled_patch16_224"),
    ],
)
def test_transformers_gives_the_same_logits(tmp_path: Path, kind: str, cls: str, name: str, as_saved: bool) -> None:
    """Both as `save_pretrained` names the tensors and as the module does."""
    import transformers

    reference = randomised(getattr(transformers, cls)(transformers_config(kind)))
    if as_saved:
        reference.save_pretrained(tmp_path)
    else:
        saved(reference, tmp_path / "model.safetensors")
    if cls == "DeiTForImageClassification":  # its distillation token is read by no head, so the plain DeiT refuses it
        with pytest.raises(UserError, match="1 not in the model: dist_token"):
            create_model(name, tmp_path, **TINY)
        return
    assert_same_logits(create_model(name, tmp_path, **TINY), Logits(reference))


def test_pooler_of_transformers_is_the_pre_training_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import ViTModel

    reference = randomised(ViTModel(transformers_config("ViT")))
    saved(reference, tmp_path / "w.safetensors")
    model: Any = create_model(NAME, tmp_path / "w.safetensors", representation_size=24, **TINY).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(features, reference(images()).pooler_output, rtol=1e-4, atol=1e-5)
    caplog.clear()
    create_model(NAME, tmp_path / "w.safetensors", **TINY)
    assert "'pre_logits', the hidden layer of the pre-training head, is left out" in caplog.text
    assert "'head' starts fresh for 5 classes (the checkpoint has none)" in caplog.text


def test_a_head_on_a_hidden_layer_is_not_kept_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = randomised(create_model(NAME, representation_size=10, **TINY))
    model: Any = create_model(NAME, saved(whole, tmp_path / "w.safetensors"), **TINY)
    assert model.head.weight.shape == (5, 24)
    assert "'head' starts fresh for 5 classes (the checkpoint has 5 classes)" in caplog.text


def test_scales_of_the_deit3_release_are_renamed(tmp_path: Path) -> None:
    reference = theirs("deit3_small_patch16_224")
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for key, v in reference.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "w.pth")
    assert_same_logits(create_model("deit3_small_patch16_224", tmp_path / "w.pth", **TINY), reference)


# What may differ.


def test_another_image_size_resizes_the_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = theirs()
    path = saved(reference, tmp_path / "w.safetensors")
    model: Any = create_model(NAME, path, **{**TINY, "img_size": 48})
    assert "position embedding resized from 4x4 to 6x6 patches" in caplog.text
    want = timm.layers.resample_abs_pos_embed(reference.pos_embed, [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, nn.Parameter(want), rtol=1e-5, atol=1e-6)
    assert len(caplog.records) == 1


def test_positions_of_a_model_whose_tokens_have_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(theirs("deit3_small_patch16_224"), tmp_path / "w.safetensors")
    model: Any = create_model("deit3_small_patch16_224", path, **{**TINY, "img_size": 48})
    assert model.pos_embed.shape == (1, 36, 24)
    assert "from 4x4 to 6x6" in caplog.text


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_mergings_of_swins_release_close_their_stage(tmp_path: Path, name: str) -> None:
    tiny = {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1), "img_size": 64}
    ours: Any = create_model(name, **tiny)
    state = {}
    for key, value in ours.state_dict().items():
        found = re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", key)
        key = f"layers.{int(found[1]) - 1}.downsample.{found[2]}" if found else key.replace("head.fc.", "head.")
        state[key] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    again = create_model(name, saved(state, tmp_path / "w.safetensors"), **tiny)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


def test_colours_of_igpt_are_read_beside_its_weights(tmp_path: Path) -> None:
    tiny = {"embed_dim": 16, "depth": 1, "num_heads": 2, "probe_layer": 1, "img_size": 4}
    ours: Any = create_model("igpt_small_32", **tiny)
    colours = torch.rand(512, 3)
    saved({key: value for key, value in ours.state_dict().items() if key != "clusters"}, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": colours.tolist()}))
    again: Any = create_model("igpt_small_32", tmp_path, **tiny)
    torch.testing.assert_close(again.clusters, colours)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        create_model("igpt_small_32", tmp_path, **tiny)


def test_other_windows_resize_the_tables_of_biases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1), "patch_size": 2, "img_size": 64}
    model = create_model("swin_tiny_patch4_window7_224", **tiny)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias_table"):
                parameter.fill_(0.5)
    path = saved(model, tmp_path / "w.safetensors")
    wider = create_model("swin_tiny_patch4_window7_224", path, window_size=8, **tiny)
    table = wider.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"]
    torch.testing.assert_close(table, torch.full((15 * 15, 1), 0.5))
    assert "3 tables of relative positions resized" in caplog.text


def test_axes_of_length_one_do_not_matter(tmp_path: Path) -> None:
    model = create_model("resmlp_12_224", depth=1)
    state = {key: value.squeeze() for key, value in model.state_dict().items()}
    again = create_model("resmlp_12_224", saved(state, tmp_path / "w.safetensors"), depth=1)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_another_channel_count_adapts_the_first_convolution(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: int
) -> None:
    reference = theirs()
    path = saved(reference, tmp_path / "w.safetensors")
    model: Any = create_model(NAME, path, in_chans=channels, **TINY)
    assert f"first convolution adapted from 3 to {channels} channels" in caplog.text
    want = timm.models.adapt_input_conv(channels, reference.patch_embed.proj.weight.detach())
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), want)


@given(old=st.integers(1, 5), new=st.integers(1, 12))
@settings(deadline=None, max_examples=25)
def test_a_constant_image_answers_the_same_in_multiples_of_the_channels(old: int, new: int) -> None:
    weight = torch.randn(2, old, 3, 3, generator=torch.Generator().manual_seed(old))
    adapted = adapt_channels(weight, new)
    assert adapted.shape == (2, new, 3, 3)
    if new == 1 or new % old == 0:
        torch.testing.assert_close(adapted.sum(1), weight.sum(1))


def test_another_class_count_leaves_a_fresh_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(theirs("deit_tiny_distilled_patch16_224"), tmp_path / "w.safetensors")
    torch.manual_seed(0)
    fresh: Any = create_model("deit_tiny_distilled_patch16_224", **{**TINY, "num_classes": 7})
    torch.manual_seed(0)
    model: Any = create_model("deit_tiny_distilled_patch16_224", path, **{**TINY, "num_classes": 7})
    assert torch.equal(model.head.weight, fresh.head.weight)
    assert torch.equal(model.head_dist.weight, fresh.head_dist.weight)
    lines = [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records]
    assert lines == [
        f"'{head}' starts fresh for 7 classes (the checkpoint has 5 classes)" for head in ("head", "head_dist")
    ]


def test_heads_appear_and_disappear_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_head = saved(theirs(), tmp_path / "with.safetensors")
    create_model(NAME, with_head, **{**TINY, "num_classes": 0})
    assert "'head' is left out (the checkpoint has 5 classes)" in caplog.text
    without = saved(theirs(num_classes=0), tmp_path / "without.safetensors")
    create_model(NAME, without, **TINY)
    assert "'head' starts fresh for 5 classes (the checkpoint has none)" in caplog.text


def test_weights_that_fit_are_loaded_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = theirs()
    model: Any = create_model(NAME, saved(reference, tmp_path / "w.safetensors"), **TINY)
    assert not caplog.records
    assert_same_logits(model, reference)


def test_the_first_convolution_and_the_head_of_a_cnn_are_fitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small: dict[str, Any] = {"depths": (1, 1, 1, 1), "img_size": 32}
    path = saved(create_model("resnet18", num_classes=5, **small), tmp_path / "w.safetensors")
    create_model("resnet18", path, num_classes=3, in_chans=1, **small)
    assert "first convolution adapted from 3 to 1 channels" in caplog.text
    assert "'fc' starts fresh for 3 classes" in caplog.text


def test_counters_that_old_files_lack_are_filled(tmp_path: Path) -> None:
    model: Any = create_model("resnet18", depths=(1, 1, 1, 1), img_size=32)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    again = create_model("resnet18", tmp_path / "w.pth", depths=(1, 1, 1, 1), img_size=32)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


# What may not.


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(theirs(depth=3), tmp_path / "w.safetensors")
    model: Any = create_model(NAME, **TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, NAME, path)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit {NAME}")
    assert "looks like the weights of another model" in message
    assert "12 not in the model: blocks.2.attn.proj.bias" in message
    assert "and 4 more" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not caplog.records


def test_a_cnn_is_no_vit_and_another_width_is_named(tmp_path: Path) -> None:
    path = saved(create_model("resnet18", depths=(1, 1, 1, 1), img_size=32), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"missing: cls_token, pos_embed.*not in the model: bn1\.bias"):
        create_model(NAME, path, **TINY)
    path = saved(theirs(embed_dim=48), tmp_path / "wide.safetensors")
    with pytest.raises(
        UserError, match=r"of another size.*blocks\.0\.attn\.proj\.bias \(48,\) where the model has \(24,\)"
    ):
        create_model(NAME, path, **TINY)


def test_a_distilled_checkpoint_is_not_mistaken_for_another_grid(tmp_path: Path) -> None:
    path = saved(theirs("deit_tiny_distilled_patch16_224"), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"not in the model: dist_token.*pos_embed \(1, 18, 24\)"):
        create_model(NAME, path, **TINY)


# Nothing is drawn that a file overwrites.


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers whether a file holds them or not."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("row", {family(row.name): row for row in reversed(ROWS)}.values(), ids=lambda row: row.name)
def test_a_model_built_to_be_filled_is_the_model_built_plainly(tmp_path: Path, row: Row) -> None:
    """Of every family, bit for bit, whatever the memory held before."""
    tiny: dict[str, Any] = {"num_classes": 5, **row.tiny}
    torch.manual_seed(0)
    path = saved(randomised(create_model(row.name, **tiny)), tmp_path / "w.safetensors")
    plain = create_model(row.name, **tiny)
    load_weights(plain, row.name, path)
    state = torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # memory that is not filled holds NaN
    try:
        ours = create_model(row.name, path, **tiny)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.get_rng_state(), state), "no random number is used"
    expected, found = everything(plain), everything(ours)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].requires_grad == expected[name].requires_grad for name in expected)
    size = ours.config.img_size
    shown = images(size, ours.config.in_chans)
    with torch.no_grad():
        assert torch.equal(ours.eval()(shown), plain.eval()(shown))


def test_a_fresh_head_is_drawn_as_without_trained_weights(tmp_path: Path) -> None:
    path = saved(randomised(create_model("swin_nano_patch4_window4_32", num_classes=5)), tmp_path / "w.safetensors")
    states = []
    for pretrained in (False, path):
        torch.manual_seed(3)
        states.append((create_model("swin_nano_patch4_window4_32", pretrained, num_classes=7), torch.rand(1)))
    (plain, after_plain), (ours, after) = states
    assert torch.equal(plain.get_classifier().weight, ours.get_classifier().weight)
    assert torch.equal(after_plain, after), "and whoever draws next draws the same"


def test_unfilled_leaves_parameters_alone_and_nothing_else() -> None:
    linear = nn.Linear(3, 2)
    before, buffer = linear.weight.clone(), torch.empty(2)
    with unfilled():
        nn.init.trunc_normal_(linear.weight)
        nn.init.kaiming_uniform_(linear.weight)
        torch.nn.init.ones_(linear.weight)
        with torch.no_grad():
            linear.weight.mul_(2).add_(1)
        nn.init.ones_(buffer)
        assert torch.equal(nn.BatchNorm1d(2).running_var, torch.ones(2))
        assert not linear.bias.requires_grad_(False).requires_grad
    assert torch.equal(linear.weight, before)
    assert torch.equal(buffer, torch.ones(2))


def test_imagenets_classes_are_torchvisions() -> None:
    from torchvision.models import ResNet18_Weights

    assert list(imagenet_classes()) == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


LOADS = """
import sys, vitrail
vitrail.create_model("vit_nano_patch8_32", pretrained=sys.argv[1])
vitrail.load(sys.argv[2])
vitrail.load("vit_nano_patch8_32")
print(*sorted({"torchvision", "matplotlib", "sklearn", "scipy", "huggingface_hub", "rich"} & sys.modules.keys()))
"""


def test_loading_a_model_imports_nothing_else(tmp_path: Path) -> None:
    recipe = Recipe(model="vit_nano_patch8_32", data=Data(source="", img_size=32, in_chans=3))
    start(tmp_path / "run", recipe, ["a", "b"])
    model: Any = create_model("vit_nano_patch8_32", num_classes=2)
    save_weights(tmp_path / "run", model.state_dict())
    code = [sys.executable, "-c", LOADS, saved(create_model("vit_nano_patch8_32"), tmp_path / "w.safetensors")]
    done = subprocess.run([*code, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


# Files.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "optimizer": {}, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"model": {key: value * 0 for key, value in state.items()}, "model_ema": state},
    ],
    ids=["model", "training script", "DataParallel", "compiled", "averaged"],
)
def test_training_checkpoints_are_unwrapped(tmp_path: Path, caplog: pytest.LogCaptureFixture, wrap: Any) -> None:
    reference = theirs()
    content = wrap(reference.state_dict())
    torch.save(content, tmp_path / "w.pth")
    assert_same_logits(create_model(NAME, tmp_path / "w.pth", **TINY), reference)
    assert ("averaged weights 'model_ema' are taken" in caplog.text) == ("model_ema" in content)


def test_a_run_folder_is_a_source_of_weights(tmp_path: Path) -> None:
    reference = theirs()
    saved(reference, tmp_path / "model.safetensors")
    assert_same_logits(create_model(NAME, str(tmp_path), **TINY), reference)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        read_state_dict(tmp_path / "empty")


class Touch:
    """Unpickling it creates a file: what a malicious checkpoint does."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"a": torch.zeros(1), "b": Touch(mark)}, tmp_path / "w.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Touch(mark)))
    savez(tmp_path / "w.npz", a=np.array([Touch(mark)], dtype=object))
    with pytest.raises(UserError, match=r"holds Python objects, not only tensors, and was not loaded"):
        read_state_dict(tmp_path / "w.pth")
    for name in ("plain.bin", "w.npz"):
        with pytest.raises(UserError):
            read_state_dict(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.safetensors", b"", "is empty"),
        ("w.pth", b"", "is empty"),
        ("w.txt", b"hello", r"\.safetensors, \.npz, \.pth, \.pt, \.pyth, \.bin are read"),
        ("w.safetensors", b"not safetensors at all", "cannot be read as .safetensors"),
        ("w.npz", b"not a zip file", "cannot be read as .npz"),
        ("w.pth", b"not a pickle", "cannot be read as .pth"),
        ("missing.pth", None, "no weights file"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2], {"a": torch.zeros(1), "lr": 0.1}], ids=str)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds (no weights but|more than tensors)"):
        read_state_dict(tmp_path / "w.pth")


@given(data=st.data(), suffix=st.sampled_from([".safetensors", ".pth", ".npz", ".bin"]))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read_but_never_crashes(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".npz":
        savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(UserError):
        assert all(isinstance(value, Tensor) for value in read_state_dict(path).values())


# The hub.


def hub_cache(folder: Path, name: str, model: nn.Module) -> Path:
    """A cache in the hub's layout, with `model` as the repository of the official weights of `name`."""
    source = official(name)
    assert source is not None
    assert source.repo is not None
    repo = folder / f"models--{source.repo.replace('/', '--')}"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    saved(model, repo / "blobs" / "abc")
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "model.safetensors").symlink_to(repo / "blobs" / "abc")
    return folder


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_official_weights_come_from_the_hubs_cache(offline_hub: Path) -> None:
    reference = theirs()
    hub_cache(offline_hub, NAME, reference)
    assert_same_logits(create_model(NAME, True, **TINY), reference)


def test_cached_weights_ask_no_network(offline_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def network(*_: Any) -> str:
        raise AssertionError("asked the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", network)
    hub_cache(offline_hub, NAME, theirs())
    source = official(NAME)
    assert source is not None
    assert fetch(source).is_file()


def test_official_weights_are_downloaded_when_not_cached(
    offline_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    reference = theirs()
    path = saved(reference, tmp_path / "w.safetensors")
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same_logits(create_model(NAME, True, **TINY), reference)
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    assert not offline_hub.exists()


def test_official_weights_out_of_reach_are_one_sentence(offline_hub: Path) -> None:
    with pytest.raises(UserError) as caught:
        create_model(NAME, True, **TINY)
    message = str(caught.value)
    assert "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k" in message
    assert "run once with a network, or give the path" in message
    assert "\n" not in message
    assert not list(offline_hub.glob("*"))


def test_the_hubs_environment_variables_are_obeyed(tmp_path: Path) -> None:
    hub_cache(tmp_path / "home" / "hub", NAME, theirs())
    code = f"from vitrail.weights import files, official; print(files.fetch(official({NAME!r})))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_file()


def test_torchvisions_weights_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import RegNet_Y_400MF_Weights, regnet_y_400mf

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reference = regnet_y_400mf().eval()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = RegNet_Y_400MF_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(reference.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    assert_same_logits(create_model("regnet_y_400mf", True), reference, images(64))


def test_torchvisions_weights_out_of_reach_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def no_network(*_: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    source = official("alexnet")
    assert source is not None
    with pytest.raises(UserError, match=r"AlexNet_Weights\.IMAGENET1K_V1.*no route to host.*run once with a network"):
        fetch(source)


def test_a_model_without_official_weights_says_so() -> None:
    with pytest.raises(UserError, match="vit_pico_patch2_8 has no official weights; give the path of a file"):
        create_model("vit_pico_patch2_8", True)


# The table.


def test_every_row_names_a_model_and_one_place() -> None:
    names = list(table())
    assert names == sorted(names)
    assert set(names) <= set(list_models())
    for name in names:
        source = official(name)
        assert source is not None
        assert sum(place is not None for place in (source.repo, source.torchvision, source.url)) == 1
        assert len(source.mean) == len(source.std) == 3
        assert source.licence
        assert 0 < source.crop_pct <= 1
        assert source.num_classes >= 0


def test_the_table_agrees_with_timm_and_torchvision() -> None:
    from torchvision.models import get_weight

    for name in table():
        source = official(name)
        assert source is not None
        if source.repo and source.repo.startswith("timm/"):
            cfg: Any = timm.models.get_pretrained_cfg(source.repo.removeprefix("timm/"))
            assert (cfg.hf_hub_id, cfg.mean, cfg.std) == (source.repo, source.mean, source.std), name
            assert (cfg.crop_pct, cfg.interpolation) == (source.crop_pct, source.interpolation), name
            assert cfg.num_classes == source.num_classes, name
        elif source.torchvision:
            transform = get_weight(source.torchvision).transforms()
            assert tuple(transform.mean) == source.mean, name
            assert transform.crop_size[0] / transform.resize_size[0] == pytest.approx(source.crop_pct, abs=1e-4), name
            assert transform.interpolation.value == source.interpolation, name


def test_weights_import_nothing_heavy() -> None:
    code = "import vitrail.weights, sys; print({'torch', 'safetensors', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
