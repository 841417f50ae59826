"""Grad-CAM, attention and rollout on every architecture of `rows.py`: a map, or one sentence that says why not."""

from __future__ import annotations

import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny

from vitrail.errors import UserError
from vitrail.interpretability.attention import class_attention, records_attention
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.rollout import rollout_map

kinds = pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)


@kinds
def test_gradcam_of_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    heat = gradcam(model, images)
    assert heat.ndim == 3
    assert len(heat) == 2
    assert heat.isfinite().all()
    assert gradcam(model, images, target=3).shape == heat.shape


@kinds
def test_attention_of_every_architecture_that_has_it(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    if row.maps == 0:
        with pytest.raises(UserError, match="use gradcam"):
            class_attention(model, images)
        return
    for layer in range(row.maps):
        heads = class_attention(model, images, layer=layer)
        assert heads.ndim == 4
        assert (heads >= 0).all()
        assert heads.sum((-2, -1)).max() < 1 + 1e-4


@kinds
def test_rollout_shares_out_one_where_all_tokens_are_attended_to(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    if not records_attention(model, images):
        with pytest.raises(UserError, match="use gradcam"):
            rollout_map(model, images)
        return
    share = rollout_map(model, images).sum((-2, -1))
    assert (share > 0).all()
    assert (share < 1 + 1e-4).all()
