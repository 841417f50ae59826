"""Filters of the first layer of every architecture, and their principal components."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail import create_model
from vitrail.errors import UserError
from vitrail.interpretability.filters import as_pictures, patch_filters


class Seen(Exception):
    """The first layer has been called."""


def first_call(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """The first convolution or linear layer of a pass, what it reads and what it gives."""
    found: list[Any] = []

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found.extend((module, inputs[0], output))
        raise Seen

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    with torch.no_grad(), pytest.raises(Seen):
        model(images)
    return found[0], found[1], found[2]


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    """The filters are those of the layer that is called first, and the components a basis of them."""
    model = randomise(tiny(row)).eval()
    if row.name == "igpt_small_32":
        with pytest.raises(UserError, match="not available for igpt because no convolution and no linear map"):
            patch_filters(model)
        return
    found = patch_filters(model, count=10**6)
    count, *shape = found.filters.shape
    assert shape[0] == 3
    assert shape[1] == shape[2]
    layer, read, _ = first_call(model, torch.randn(1, 3, row.side, row.side))
    if isinstance(layer, nn.Conv2d):
        torch.testing.assert_close(torch.from_numpy(found.filters), layer.weight.detach().double())
        assert read.shape[1] == 3
    else:
        assert row.name.startswith(("sl_vit", "sl_swin"))
        assert layer.weight.shape == (count, 5 * np.prod(shape))
    rank = min(count, int(np.prod(shape)))
    basis = found.components.reshape(rank, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-5)
    assert found.shares.shape == (rank,)
    assert found.shares.sum() == pytest.approx(1)
    assert (np.diff(found.shares) <= 0).all()
    np.testing.assert_allclose(found.reconstructed(), found.filters, atol=1e-10)
    pictures = as_pictures(found.components)
    assert pictures.shape == (rank, shape[1], shape[2], 3)
    assert pictures.min() == 0
    assert pictures.max() == 1


@pytest.mark.parametrize("name", ["lsa_vit_patch8_64", "sl_vit_patch8_64", "sl_swin_tiny_patch4_window4_64"])
def test_linear_patchifiers_as_convolutions(name: str) -> None:
    """Rows, columns and channels are in their places: a convolution with these filters gives what the layer gives."""
    toy = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
    model = create_model(name, num_classes=5, **toy) if name.startswith("lsa") else tiny(name)
    model = randomise(model).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer, read, output = first_call(model, images)
    filters = torch.from_numpy(patch_filters(model).filters).float()
    side = filters.shape[-1]
    expected = F.conv2d(images, filters, stride=side).flatten(2).mT
    if name.startswith("lsa"):
        torch.testing.assert_close(output - layer.bias, expected, atol=1e-5, rtol=1e-4)
        return
    # of 15 channels the first three are the image; the layer reads them after a norm, so it is given them bare
    pixels = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).flatten(1, 2)
    bare = F.pad(pixels, (0, 12)).flatten(2)
    assert bare.shape == read.shape
    torch.testing.assert_close(F.linear(bare, layer.weight), expected, atol=1e-5, rtol=1e-4)


def test_errors_fall_as_components_are_added() -> None:
    """By the share of variance that is left, to 0 at full rank."""
    model = tiny("vit_tiny_patch16_224", embed_dim=64, num_heads=4, patch_size=4)
    errors = []
    for count in (1, 8, 24, 47, 48):
        found = patch_filters(model, count)
        spread = ((found.filters - found.filters.mean(0)) ** 2).sum()
        errors.append(((found.reconstructed() - found.filters) ** 2).sum() / spread)
        assert errors[-1] == pytest.approx(1 - found.shares[:count].sum(), abs=1e-9)
        assert found.components.shape == (count, 3, 4, 4)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5
    assert errors[-1] < 1e-12


def test_a_planted_component_is_found() -> None:
    model = tiny("vit_tiny_patch16_224")
    generator = torch.Generator().manual_seed(0)
    plant = torch.zeros(3, 8, 8)
    plant[0, :, 2], plant[2, :, 5] = 1, -2  # a red line and a stronger blue one
    with torch.no_grad():
        strength = torch.randn(24, 1, 1, 1, generator=generator)
        model.patch_embed.proj.weight.normal_(0, 0.01, generator=generator).add_(strength * plant + 3)
    found = patch_filters(model, 3)
    np.testing.assert_allclose(found.components[0], -(plant / plant.norm()).numpy(), atol=0.02)
    assert found.shares[0] > 0.95
    picture = as_pictures(found.components)[0]
    assert picture[:, 5, 2].min() > 0.95
    assert picture[:, 2, 0].max() < 0.05


def test_untrained_filters_are_noise() -> None:
    """Marchenko and Pastur: eigenvalues of M random filters of n values lie in (1 -+ sqrt(n / M)) ** 2, mean 1."""
    model = tiny("vit_tiny_patch16_224", embed_dim=768, num_heads=12)
    found = patch_filters(model)
    spectrum = found.shares * 192
    assert len(spectrum) == 192
    assert spectrum.max() == pytest.approx((1 + 0.5) ** 2, rel=0.05)
    assert spectrum.min() == pytest.approx((1 - 0.5) ** 2, rel=0.1)


def test_grey_and_other_channels() -> None:
    grey = patch_filters(tiny("vit_tiny_patch16_224", in_chans=1))
    pictures = as_pictures(grey.components)
    assert pictures.shape == (24, 8, 8, 3)
    assert (pictures[..., 0] == pictures[..., 2]).all()
    with pytest.raises(UserError, match="4 channels"):
        as_pictures(patch_filters(tiny("vit_tiny_patch16_224", in_chans=4)).components)
    assert (as_pictures(np.full((2, 3, 4, 4), 0.3)) == 0).all()


def test_mistakes() -> None:
    with pytest.raises(UserError, match="count is 0"):
        patch_filters(tiny("vit_tiny_patch16_224"), 0)
    toy = {"depths": (1, 1, 1, 1), "base_width": 16, "img_size": 64}
    with pytest.raises(UserError, match="sasa_resnet because no convolution and no linear map of patches"):
        patch_filters(create_model("sasa_resnet26_full", num_classes=5, **toy))
