"""Effective receptive fields: closed forms of networks whose reach is known, then every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.receptive_field import radius, receptive_fields, side_of_half


class InARow(nn.Module):
    """Blocks one after another on maps."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def trunk(self) -> list[str]:
        return [f"blocks.{i}" for i in range(len(self.blocks))]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class SilentSum(nn.Module):
    """LayerNorm of channels without affine: what it gives for a place adds up to 0, whatever the picture."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


def pictures(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def convolutions(depth: int) -> InARow:
    torch.manual_seed(0)
    return InARow(*[nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(depth)])


@pytest.mark.parametrize("side", [15, 16])
def test_convolutions_reach_as_far_as_their_kernels(side: int) -> None:
    found = receptive_fields(convolutions(4), [pictures(2, side)])
    for layer, heat in enumerate(found.maps):
        lit = heat > 0
        near = np.abs(np.arange(side) - (side - 1) / 2) <= layer + 1.5  # an even grid has four middle places
        assert np.array_equal(lit, near[:, None] & near)
    assert (np.diff(found.radius) > 0).all()
    assert found.layers == [f"blocks.{i}" for i in range(4)]


def test_one_channel_gives_the_kernel_itself() -> None:
    model = InARow(nn.Conv2d(3, 1, 3, padding=1))
    found = receptive_fields(model, [pictures(2, 5), pictures(1, 5)])
    kernel = model.blocks[0].get_parameter("weight").detach().abs().sum((0, 1)).numpy()
    np.testing.assert_allclose(found.maps[0, 1:4, 1:4], kernel, rtol=1e-6)
    assert found.images == 3


@pytest.mark.parametrize(("side", "lit"), [(24, slice(8, 16)), (32, slice(8, 24))])
def test_without_attention_a_token_sees_its_patch(side: int, lit: slice) -> None:
    model = randomise(tiny("vit_tiny_patch16_224", img_size=side))
    seen = receptive_fields(model, [pictures(2, side)]).maps
    assert (seen > 0).all(), "attention sees everything"
    for block in model.get_submodule("blocks").children():
        block.attn = nn.Identity()
    alone = receptive_fields(model, [pictures(2, side)]).maps
    assert (alone[:, lit, lit] > 0).all()
    alone[:, lit, lit] = 0
    assert not alone.any()


def test_a_norm_whose_channels_add_up_to_nothing_is_still_seen() -> None:
    model = InARow(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), SilentSum()))
    images = pictures(4, 9).requires_grad_()
    (plain,) = torch.autograd.grad(model(images)[:, :, 4, 4].sum(), images)
    assert plain.abs().sum(1).mean(0).max() < 1e-5
    assert receptive_fields(model, [images]).maps[0, 3:6, 3:6].min() > 0.1


def test_the_signs_measure_the_norm_over_channels() -> None:
    """Khintchine: the mean over signs of |sum of s g| lies between the norm of g over root 2 and the norm."""
    model = InARow(nn.Conv2d(1, 64, 3, padding=1))
    norm = model.blocks[0].get_parameter("weight").detach().norm(dim=(0, 1)).numpy()
    found = receptive_fields(model, [pictures(1, 3)[:, :1]], draws=200).maps[0]
    np.testing.assert_allclose(found / norm, (2 / np.pi) ** 0.5, rtol=0.15)


def test_radius_and_side() -> None:
    even = np.ones((1, 224, 224))
    assert side_of_half(even)[0] == pytest.approx(0.71, abs=0.005)
    assert radius(even)[0] == pytest.approx(((224**2 - 1) / 6) ** 0.5)
    assert side_of_half(np.ones((1, 200, 100)))[0] == pytest.approx(0.71, abs=0.02)
    spot = np.zeros((2, 7, 7))
    spot[0, 3, 3] = 2.0
    spot[1, 0, 3] = 1.0
    assert radius(spot).tolist() == [0, 3]
    assert side_of_half(spot) == pytest.approx([1 / 7, 1])


def test_batches_do_not_matter_and_blocks_can_be_chosen() -> None:
    model, images = convolutions(3), pictures(4, 12)
    whole = receptive_fields(model, [images], draws=3)
    parts = receptive_fields(model, images.split(3), draws=3, layers=[-1, 0])
    assert parts.layers == ["blocks.2", "blocks.0"]
    np.testing.assert_allclose(parts.maps, whole.maps[[2, 0]], rtol=1e-5)
    np.testing.assert_allclose(parts.side50, whole.side50[[2, 0]])


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).train()
    next(model.parameters()).requires_grad_(requires_grad=False)
    asked = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if row.name.startswith("igpt"):
        with pytest.raises(UserError, match="not available for igpt because no gradient passes"):
            receptive_fields(model, [pictures(2, row.side)])
    else:
        found = receptive_fields(model, [pictures(2, row.side)], draws=1)
        assert found.layers == model.trunk()
        assert found.maps.shape == (len(found.layers), row.side, row.side)
        assert np.isfinite(found.maps).all()
        assert (found.maps.sum((1, 2)) > 0).all()
        assert ((found.side50 > 0) & (found.side50 <= 1)).all()
        assert ((found.radius > 0) & (found.radius < row.side)).all()
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mistakes() -> None:
    model = convolutions(2)
    for match, arguments in (
        ("no block 2; the model has blocks 0 to 1", {"layers": [2]}),
        ("draws is 0", {"draws": 0}),
    ):
        with pytest.raises(UserError, match=match):
            receptive_fields(model, [pictures(1, 8)], **arguments)
    with pytest.raises(UserError, match="no images"):
        receptive_fields(model, [])
    with pytest.raises(UserError, match="differ in size"):
        receptive_fields(model, [pictures(1, 8), pictures(1, 9)])
