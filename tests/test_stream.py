"""The residual stream of every architecture: its blocks in the order of the pass, each as tokens on a grid."""

from __future__ import annotations

import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor

from vitrail.interpretability.stream import Flow, tapped, trunk
from vitrail.models import create_model

CNNS = {"resnet18": 8, "vgg11": 5, "alexnet": 3, "convnext_tiny": 18, "efficientnet_b0": 16, "regnet_y_400mf": 16}


def flows(model: torch.nn.Module, images: Tensor) -> dict[str, Flow]:
    seen: dict[str, Flow] = {}
    with torch.no_grad(), tapped(model, seen.__setitem__):
        model(images)
    return seen


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_block_hands_on_places(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    seen = flows(model, images)
    assert list(seen) == trunk(model)
    assert len(seen) >= 2
    for flow in seen.values():
        assert flow.grid.ndim == 4
        assert len(flow.grid) == 2
        assert flow.grid.shape[-2] == flow.grid.shape[-1]
        assert flow.prefix.shape[0::2] == (2, flow.grid.shape[1])
        assert flow.prefix.shape[1] in (0, getattr(model, "num_prefix_tokens", 0))
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(("name", "blocks"), CNNS.items())
def test_blocks_of_cnns(name: str, blocks: int) -> None:
    assert len(flows(create_model(name, num_classes=5).eval(), torch.randn(1, 3, 64, 64))) == blocks


def test_the_stream_is_the_blocks_own_output() -> None:
    torch.manual_seed(0)
    tokens = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
    model = create_model("deit_tiny_distilled_patch16_224", **tokens).eval()
    images = torch.randn(2, 3, 32, 32)
    last = flows(model, images)["blocks.1"]
    assert last.prefix.shape == (2, 2, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.norm(torch.cat([last.prefix, last.tokens], 1)), model.forward_features(images))
    swin = create_model(
        "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1), img_size=56
    ).eval()
    kept: dict[str, Tensor] = {}
    swin.layers[1].blocks[0].register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    seen = flows(swin, torch.randn(1, 3, 56, 56))
    torch.testing.assert_close(seen["layers.1.blocks.0"].tokens, kept["out"].flatten(1, 2))


def test_only_the_blocks_asked_for() -> None:
    model = create_model("resnet18", num_classes=5).eval()
    seen: dict[str, Flow] = {}
    with torch.no_grad(), tapped(model, seen.__setitem__, ["layer3.0"]):
        model(torch.randn(1, 3, 64, 64))
    assert list(seen) == ["layer3.0"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
