"""Features as colours: regions whose answer is known, what must not change the picture, and every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.feature_pca import colours, feature_pca, principal
from vitrail.interpretability.stream import trunk


class Through(nn.Module):
    """A network of one block that gives back its input: what it is shown are its features."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def trunk(self) -> list[str]:
        return ["block"]

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images)


def regions(noise: float, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Three codes of 16 channels laid out over two images: features (2, 16, 8, 12) and labels (2, 8, 12)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, dim, generator=generator) * 3
    labels = torch.zeros(2, 8, 12, dtype=torch.long)
    labels[0, :, 4:], labels[0, :, 8:] = 1, 2
    labels[1, 2:], labels[1, 5:, 6:] = 2, 1
    features = codes[labels] + noise * torch.randn(2, 8, 12, dim, generator=generator)
    return features.permute(0, 3, 1, 2), labels


def test_three_codes_become_three_flat_colours() -> None:
    features, labels = regions(noise=0.0)
    found = feature_pca(Through(), features)
    assert found.picture.shape == (2, 8, 12, 3)
    flat = [np.unique(found.picture[labels == region].round(5), axis=0) for region in range(3)]
    assert [len(rows) for rows in flat] == [1, 1, 1]
    assert min(np.abs(a - b).max() for a, b in zip(flat, [*flat[1:], flat[0]], strict=True)) > 0.5
    assert found.explained.sum() == pytest.approx(1)
    assert (found.picture[..., 2] == 0.5).all()  # three codes span two directions
    assert found.explained[2] == 0


def test_regions_are_found_again_by_the_nearest_colour() -> None:
    features, labels = regions(noise=0.3)
    picture = feature_pca(Through(), features).picture
    means = np.stack([picture[0][labels[0] == region].mean(0) for region in range(3)])
    nearest = np.linalg.norm(picture[..., None, :] - means, axis=-1).argmin(-1)
    assert (nearest == labels.numpy()).mean() > 0.99  # the second image by the colours of the first


def test_explained_variance_is_that_of_the_singular_values() -> None:
    features, _ = regions(noise=1.0)
    tokens = features.permute(0, 2, 3, 1).reshape(-1, 16).double()
    scores, shares = principal(tokens)
    _, singular, directions = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    np.testing.assert_allclose(shares, (singular.square() / singular.square().sum())[:3].numpy(), rtol=1e-10)
    rows = directions[:3]
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    np.testing.assert_allclose(scores, ((tokens - tokens.mean(0)) @ (rows * signs).mT).numpy(), atol=1e-9)


def test_neither_rotation_nor_offset_nor_scale_changes_more_than_a_sign() -> None:
    features, _ = regions(noise=1.0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    other = torch.einsum("bchw,cd->bdhw", features, turn) * 7 + torch.randn(16)[None, :, None, None]
    one, two = feature_pca(Through(), features), feature_pca(Through(), other)
    np.testing.assert_allclose(one.explained, two.explained, rtol=1e-5)
    for channel in range(3):
        a, b = one.picture[..., channel], two.picture[..., channel]
        assert min(np.abs(a - b).max(), np.abs(a - (1 - b)).max()) < 1e-4


def test_images_share_their_colours() -> None:
    """What an image looks like depends on the set it is in, but equal features have equal colours there."""
    features, _ = regions(noise=1.0)
    picture = feature_pca(Through(), torch.cat([features, features.flip(0)])).picture
    np.testing.assert_allclose(picture[0], picture[3], atol=1e-6)
    np.testing.assert_allclose(picture[1], picture[2], atol=1e-6)


def test_an_outlier_takes_no_share_of_the_colours() -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
    usual = colours(scores)
    scores[0] = 1e6
    assert np.abs(colours(scores)[1:] - usual[1:]).max() < 0.01
    assert (colours(scores)[0] == 1).all()
    assert ((usual == 0).sum(0) == 10).all()  # 1 % at each end


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 2, 3, 3), (1, 8, 1, 1), (1, 8, 1, 2), (1, 2, 1, 1)])
def test_few_channels_or_places(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = feature_pca(Through(), features)
    rank = min(shape[1], shape[0] * shape[2] * shape[3] - 1)
    assert np.isfinite(found.picture).all()
    assert ((found.explained > 0) == (np.arange(3) < rank)).all()
    assert found.explained.sum() == pytest.approx(1.0 if rank else 0.0)
    assert (found.picture[..., rank:] == 0.5).all()
    assert all(np.ptp(found.picture[..., component]) == 1 for component in range(min(rank, 3)))


def test_equal_features_are_grey_however_large() -> None:
    """Rounding is not a component."""
    flat = (torch.ones(2, 6, 5, 5) * 1000.1 + torch.arange(6)[:, None, None] / 3).float()
    found = feature_pca(Through(), flat)
    assert (found.picture == 0.5).all()
    assert (found.explained == 0).all()


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).train()
    images = torch.randn(3, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for layer in (0, -1):
        found = feature_pca(model, images, layer=layer)
        assert found.picture.shape[0::3] == (3, 3)
        assert ((found.picture >= 0) & (found.picture <= 1)).all()
        assert (np.diff(found.explained) <= 1e-12).all()
        assert 0 < found.explained.sum() <= 1 + 1e-9
    assert model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_layers_are_counted_from_both_ends_and_a_missing_one_is_refused() -> None:
    model = randomise(tiny("vit_tiny_patch16_224"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    last = len(trunk(model)) - 1
    pictures = [feature_pca(model, images, layer=layer).picture for layer in (0, last, -1)]
    assert np.array_equal(pictures[1], pictures[2])
    assert not np.allclose(pictures[0], pictures[1])
    assert np.array_equal(feature_pca(torch.compile(model), images).picture, pictures[1])
    for layer in (last + 1, -last - 2):
        with pytest.raises(UserError, match=f"there is no block {layer}; the model has blocks 0 to {last}"):
            feature_pca(model, images, layer=layer)
