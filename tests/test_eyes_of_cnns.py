"""Every way to look at a model, on the convolutional families: numbers, or the sentence that says why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cnn import TINY, quick
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.attention import attention_from
from vitrail.interpretability.curvature import top_eigenvalue
from vitrail.interpretability.distance import attention_statistics
from vitrail.interpretability.feature_pca import feature_pca
from vitrail.interpretability.filters import patch_filters
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.landscape import loss_landscape
from vitrail.interpretability.localisation import localisation
from vitrail.interpretability.positions import position_similarity, relative_bias
from vitrail.interpretability.receptive_field import receptive_fields
from vitrail.interpretability.relevance import attention_gradient, relevance
from vitrail.interpretability.residual import residual_ratios
from vitrail.interpretability.rollout import rollout_map
from vitrail.interpretability.similarity import cka
from vitrail.interpretability.stream import trunk
from vitrail.models import create_model

NAMES = ["resnext50_32x4d", "wide_resnet50_2", "resnet20", *TINY]
LARGE = ("resnext50_32x4d", "wide_resnet50_2", "vgg11")  # a minute for the Hessian of 20 to 130 million weights


def seen(name: str) -> tuple[nn.Module, Tensor]:
    """A model in eval mode and four images, of 64 pixels."""
    torch.manual_seed(0)
    if name in TINY:
        model = quick(name, img_size=64, num_classes=5)
    else:
        model = create_model(name, img_size=64, num_classes=5)
    return model.eval(), torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES]
)
def test_a_cnn_gives_what_it_can(name: str) -> None:
    model, images = seen(name)
    blocks, labels = len(trunk(model)), torch.tensor([0, 1, 2, 3])
    assert gradcam(model, images).isfinite().all()
    picture = feature_pca(model, images).picture
    assert picture.shape[-1] == 3
    assert np.isfinite(picture).all()
    assert len(patch_filters(model).components)
    fields = receptive_fields(model, [images[:1]], layers=[0, -1], draws=1)
    assert np.isfinite(fields.maps).all()
    alike = cka(model, [images]).values
    assert alike.shape == (blocks, blocks)
    found = alike.diagonal()[np.isfinite(alike.diagonal())]
    np.testing.assert_allclose(found, 1, atol=1e-6)
    surface = loss_landscape(model, F.cross_entropy, [(images, labels)], steps=3)
    with torch.no_grad():
        assert surface.losses[1, 1] == pytest.approx(float(F.cross_entropy(model(images), labels)), rel=1e-5)
    assert np.isfinite(top_eigenvalue(model, F.cross_entropy, [(images[:2], labels[:2])], iterations=1).magnitude)


@pytest.mark.parametrize("name", NAMES)
def test_a_cnn_says_what_it_has_not(name: str) -> None:
    model, images = seen(name)
    for look in (rollout_map, attention_from, relevance, attention_gradient):
        with pytest.raises(UserError, match=r"is not available for \w+ because it has no softmax attention"):
            look(model, images[:1])
    with pytest.raises(UserError, match=r"distance is not available for \w+ because it has no softmax attention"):
        attention_statistics(model, [images[:1]])
    for look in (position_similarity, relative_bias):
        with pytest.raises(UserError, match=r"is not available for \w+ because it has no table"):
            look(model)


@pytest.mark.parametrize("name", NAMES)
def test_branches_and_places_of_a_cnn(name: str) -> None:
    model, images = seen(name)
    if name in ("vgg11", "alexnet"):
        with pytest.raises(UserError, match="no block of it adds a branch"):
            residual_ratios(model, [images])
    else:
        assert np.isfinite(residual_ratios(model, [images]).patch).all()
    if name == "alexnet":
        with pytest.raises(UserError, match="its last block has one place only"):
            localisation(model, [images])
    else:
        assert localisation(model, [images]).images == 4
