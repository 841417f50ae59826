"""Every method on every architecture of `rows.py`: a map, or one sentence that says why not."""

from __future__ import annotations

import pytest
import torch
from rows import Row
from test_models import KINDS, randomise, tiny

from vitrail.errors import UserError
from vitrail.interpretability.attention import attention_from, class_attention, records_attention, sites
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.relevance import attention_gradient, relevance
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


@kinds
def test_attention_from_every_place_of_every_architecture(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    if row.maps == 0:
        with pytest.raises(UserError, match="use gradcam"):
            attention_from(model, images, query=(0, 0))
        return
    found = sites(model, images)
    assert len(found) == row.maps
    for site in found:
        high, wide = site.places.query_grid
        if high * wide > 64:
            continue
        each = [site.seen_from((r, c)) for r in range(high) for c in range(wide)]
        assert each[0].shape == (2, site.weights.shape[1], *site.places.key_grids[0])
        for seen in each:
            assert (seen >= 0).all()
            assert seen.sum((-2, -1)).max() < 1 + 1e-4
        if not site.class_token:  # all positions alike ask as much as each of them
            torch.testing.assert_close(torch.stack(each).mean(0), site.seen_from(), rtol=1e-4, atol=1e-6)
        with pytest.raises(UserError, match=f"no query at {high},0: in {site.name} the rows are 0 to {high - 1}"):
            site.seen_from((high, 0))


@kinds
def test_relevance_of_every_architecture_whose_blocks_attend_over_all_tokens(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    if not records_attention(model, images):
        with pytest.raises(UserError, match="use attention-gradient" if row.maps else "use gradcam"):
            relevance(model, images)
        return
    first, second = (relevance(model, images, target=target) for target in (1, 2))
    assert first.shape == rollout_map(model, images).shape
    assert first.isfinite().all()
    assert first.min() >= -1e-6
    assert first.max() > 0
    assert not torch.allclose(first, second, rtol=0.01)


@kinds
def test_attention_gradient_of_every_architecture_that_has_attention(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0))
    if row.maps == 0:
        with pytest.raises(UserError, match="use gradcam"):
            attention_gradient(model, images)
        return
    first, second = (attention_gradient(model, images, target=target) for target in (1, 2))
    assert first.ndim == 3
    assert first.isfinite().all()
    assert (first >= 0).all()
    assert (first.sum((1, 2)) > 0).all()
    assert not torch.allclose(first, second, rtol=0.01)
