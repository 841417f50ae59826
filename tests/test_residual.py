"""Norm ratios of residual branches: what scaling a branch does to them, and that the additions found are the real ones
of every architecture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.residual import LARGEST, additions, residual_ratios
from vitrail.layers.blocks import Block, DropPath
from vitrail.models import create_model

kinds = pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)


class Twice(nn.Module):
    """A branch along its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def pictures(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def vit() -> Any:
    return randomise(tiny("vit_tiny_patch16_224"))


def test_ratios_of_a_plain_block_by_hand() -> None:
    model, images = vit(), pictures(3, 32)
    with torch.no_grad():
        z = model.embed(images)
        written: list[tuple[Tensor, Tensor]] = []
        for block in model.blocks:
            for f in (lambda x, b=block: b.attn(b.norm1(x)), lambda x, b=block: b.mlp(b.norm2(x))):
                written.append((z, f(z)))
                z = z + written[-1][1]
    ratio = torch.stack([a.norm(dim=-1) / b.norm(dim=-1) for a, b in written])
    cosine = torch.stack([F.cosine_similarity(a, a + b, dim=-1)[:, 1:].mean() for a, b in written])
    found = residual_ratios(model, images.split(2))
    assert found.rows == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert found.what == ["attention", "mlp"] * 2
    assert (found.left_out, found.images) == ([], 3)
    np.testing.assert_allclose(found.tokens, ratio.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.patch, ratio[:, :, 1:].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.cls, ratio[:, :, 0].mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.median, np.median(ratio[:, :, 1:], axis=2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-5)


def test_twice_the_branch_is_half_the_ratio() -> None:
    model, images = vit(), pictures(2, 32)
    before = residual_ratios(model, [images])
    with torch.no_grad():
        for parameter in model.blocks[0].attn.proj.parameters():
            parameter *= 2
    after = residual_ratios(model, [images])
    assert np.array_equal(2 * after.tokens[0], before.tokens[0])
    assert np.array_equal(2 * after.patch[:1], before.patch[:1])
    assert (after.patch[1:] != before.patch[1:]).all()


def test_a_silent_branch_and_one_that_repeats_its_input() -> None:
    model, images = vit(), pictures(2, 32)
    with torch.no_grad():
        for parameter in model.blocks[0].attn.proj.parameters():
            parameter.zero_()
    model.blocks[1].norm1, model.blocks[1].attn = nn.Identity(), Twice()
    found = residual_ratios(model, [images])
    assert found.tokens[0] == pytest.approx(LARGEST)
    assert found.tokens[2] == pytest.approx(0.5)
    assert found.cosine[[0, 2]] == pytest.approx(1)
    assert np.isfinite(found.tokens).all()


def test_layer_scale_is_part_of_the_branch() -> None:
    model, images = randomise(tiny("deit3_small_patch16_224")), pictures(2, 32)
    before = residual_ratios(model, [images])
    with torch.no_grad():
        model.get_submodule("blocks.0.ls1").get_parameter("gamma").mul_(0.25)
    assert residual_ratios(model, [images]).patch[0] == pytest.approx(4 * before.patch[0])


def test_a_shortcut_that_projects_is_the_skip() -> None:
    model = randomise(create_model("resnet18", num_classes=5)).eval()
    seen: list[tuple[str, Tensor, Tensor]] = []
    parts: dict[str, Tensor] = {}
    for name in ("layer2.0.downsample", "layer2.0.bn2", "layer2.1.bn2"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: parts.update({name: out + 0}))
    images = pictures(2, 64)
    with torch.no_grad(), additions(model, lambda name, _part, z, f: seen.append((name, z + 0, f + 0))):
        model(images)
    by_name = {name: (z, f) for name, z, f in seen}
    assert [name for name, *_ in seen] == model.trunk()
    assert torch.equal(by_name["layer2.0"][0], parts["layer2.0.downsample"])
    assert torch.equal(by_name["layer2.0"][1], parts["layer2.0.bn2"])
    assert torch.equal(by_name["layer2.1"][1], parts["layer2.1.bn2"])
    assert set(residual_ratios(model, [images]).what) == {"block"}


@kinds
def test_what_is_added_is_what_leaves_drop_path_and_shortcuts(row: Row) -> None:
    """Where a network has stochastic depth its branches are known, where it has modules for shortcuts its skips."""
    model = randomise(tiny(row)).eval()
    known: dict[bool, list[Tensor]] = {True: [], False: []}
    added: list[tuple[Tensor, Tensor]] = []
    for block in model.trunk():
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            shortcut = name.rpartition(".")[2] in ("downsample", "shortcut")
            if shortcut or isinstance(module, DropPath):
                module.register_forward_hook(lambda _m, _i, out, is_skip=shortcut: known[is_skip].append(out))
    with torch.no_grad(), additions(model, lambda _name, _part, z, f: added.append((z, f))):
        model(pictures(2, row.side))
    for skip, passed in known.items():
        # besides: the words of TNT that go into patches, and convolutions in front of a transformer
        tensors = [one[0 if skip else 1] for one in added]
        found = [x for x in tensors if any(x is out for out in passed)]
        assert len(found) == len(passed)
        assert all(x is out for x, out in zip(found, passed, strict=True))
    assert known[True] or known[False] or row.name.startswith(("igpt", "convmixer", "sl_vit")), "nothing was compared"


@kinds
def test_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).train()
    images = pictures(2, row.side)
    found = residual_ratios(model, [images])
    size = len(found.rows)
    assert len(found.what) == len(set(found.rows)) == size
    for values in (found.patch, found.median, found.cosine):
        assert values.shape == (size,)
        assert np.isfinite(values).all()
    assert ((found.patch > 0) & (found.patch < 50)).all(), "the branches of randomised weights are about as long"
    assert (np.abs(found.cosine) <= 1 + 1e-6).all()
    assert np.isnan(found.cls).all() or getattr(model, "num_prefix_tokens", 0)
    assert found.left_out == ([f"stages.{i}.0" for i in range(5)] if row.name.startswith("mobilevit") else []), (
        "only the blocks of MobileViT that change the number of channels have no shortcut"
    )
    plain = [name for name, module in model.named_modules() if isinstance(module, Block)]
    wanted = [f"{name}.{part}" for name in plain if name in model.trunk() for part in ("attn", "mlp")]
    assert set(wanted) <= set(found.rows)
    if row.maps and wanted and not found.left_out:
        assert set(found.what) <= {"attention", "mlp", "block"}
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "rows", "left_out"),
    [("convnext_tiny", 18, 0), ("regnet_y_400mf", 16, 0), ("efficientnet_b0", 9, 7), ("resnext50_32x4d", 16, 0)],
)
def test_blocks_of_cnns(name: str, rows: int, left_out: int) -> None:
    found = residual_ratios(create_model(name, num_classes=5), [pictures(1, 64)])
    assert (len(found.rows), len(found.left_out)) == (rows, left_out)
    assert set(found.what) == {"block"}
    assert (found.patch < LARGEST).all()


def test_mistakes() -> None:
    with torch.device("meta"):  # no need for its 129 million weights
        vgg = create_model("vgg11", num_classes=5)
    with pytest.raises(UserError, match="not available for vgg because no block of it adds"):
        residual_ratios(vgg, [pictures(1, 64).to("meta")])
    with pytest.raises(UserError, match="no images"):
        residual_ratios(vit(), [])
    model = create_model("resnet18", num_classes=5)
    with pytest.raises(UserError, match="differ in size"):
        residual_ratios(model, [pictures(1, 64), pictures(1, 96)])
