"""Relevance against its closed forms, its matrix form and the authors' notebook on timm's DeiT; rollout there too."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import difference, randomise, tiny
from torch import Tensor, nn

from vitrail import create_model, record
from vitrail.errors import UserError
from vitrail.interpretability.relevance import attention_gradient, propagate, relevance
from vitrail.interpretability.rollout import rollout_map
from vitrail.layers.attention import Places, attend, place
from vitrail.layers.tokens import join_windows, windows

SIDE, WINDOW = 4, 2


class OneBlock(nn.Module):
    """One attention of one head whose value at pixel j is the j-th unit vector: class j's logit is A[0, j] alone."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), images.flatten(1)[:, :, None]], 1)
        q = k = tokens[:, None] + 0.3  # (B, 1, 17, 1)
        v = torch.eye(SIDE * SIDE).expand(len(images), 1, -1, -1)
        return attend(q, k, nn.functional.pad(v, (0, 0, 1, 0)), site=self)[:, 0, 0]


class Windows(nn.Module):
    """The same in windows of 2 x 2: class j's logit is what pixel j receives from its window."""

    def forward(self, images: Tensor) -> Tensor:
        cells = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE, 1)
        folded = windows(cells, WINDOW, WINDOW)[..., 0]
        place(self, lambda: Places(folded, folded[:, None], (SIDE, SIDE), ((SIDE, SIDE),)))
        q = windows(images.movedim(1, -1), WINDOW, WINDOW)[:, None]  # (B G, 1, 4, 1)
        v = torch.eye(SIDE * SIDE)[folded].repeat(len(images), 1, 1)[:, None]
        x = join_windows(attend(q, q, v, site=self)[:, 0], WINDOW, WINDOW, (SIDE, SIDE))
        return x.sum((1, 2))


def pixels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def weighted(model: nn.Module, images: Tensor, target: int) -> list[Tensor]:
    """relu(G A), mean over heads, of every attention, in the order of the pass."""
    with record(model) as maps:
        score = model(images)[:, target].sum()
    gradients = torch.autograd.grad(score, list(maps.values()))
    return [(a.detach() * g).clamp(min=0).mean(1) for a, g in zip(maps.values(), gradients, strict=True)]


def matrix(maps: list[Tensor]) -> Tensor:
    """R <- R + Abar R from R = I."""
    whole = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype).expand(len(maps[0]), -1, -1)
    for mixing in maps:
        whole = whole + mixing @ whole
    return whole


def assert_close(a: Tensor, b: Tensor, relative: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert b.max() > 0
    assert difference(a, b) < relative


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("target", [0, 6, 15])
def test_a_logit_of_one_token_peaks_there_and_nowhere_else(target: int) -> None:
    model, images = OneBlock(), pixels()
    with torch.no_grad():
        share = model(images)[:, target]  # the logit is the weight, and its gradient 1
    for method in (relevance, attention_gradient):
        found = method(model, images, target=target).flatten(1)
        torch.testing.assert_close(found[:, target], share)
        assert torch.count_nonzero(found) == len(images)


@pytest.mark.parametrize("target", [0, 6, 15])
def test_attention_in_windows_lands_where_its_keys_lie(target: int) -> None:
    model, images = Windows(), pixels()
    with torch.no_grad():
        share = model(images)[:, target]
    found = attention_gradient(model, images, target=target).flatten(1)
    torch.testing.assert_close(found[:, target], share)
    assert torch.count_nonzero(found) == len(images)


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 4), tokens=st.integers(2, 9), seed=st.integers(0, 999), reads=st.integers(0, 8))
def test_the_row_is_that_of_the_matrix(blocks: int, tokens: int, seed: int, reads: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    maps = [torch.rand(2, tokens, tokens, generator=draws, dtype=torch.float64) for _ in range(blocks)]
    start = nn.functional.one_hot(torch.tensor([reads % tokens] * 2), tokens).double()
    torch.testing.assert_close(propagate(maps, start), matrix(maps)[:, reads % tokens], rtol=1e-12, atol=0)
    everywhere = torch.full((2, tokens), 1 / tokens, dtype=torch.float64)
    torch.testing.assert_close(propagate(maps, everywhere), matrix(maps).mean(1))


def test_blocks_do_not_commute() -> None:
    maps = [torch.rand(1, 4, 4), torch.rand(1, 4, 4)]
    start = torch.tensor([[1.0, 0, 0, 0]])
    assert not torch.allclose(propagate(maps, start), propagate(maps[::-1], start))


def test_a_token_that_joins_late_was_not_there_before_and_a_lone_query_is_the_first() -> None:
    early, top = torch.rand(1, 3, 3), torch.rand(1, 1, 4)
    whole = [nn.functional.pad(early, (1, 0, 1, 0)), nn.functional.pad(top, (0, 0, 0, 3))]
    start = torch.tensor([[1.0, 0, 0, 0]])
    torch.testing.assert_close(propagate([early, top], start), matrix(whole)[:, 0])


# ------------------------------------------------------------------ where models read


def test_the_class_token_reads() -> None:
    model, images = randomise(tiny("vit_tiny_patch16_224")).eval(), torch.randn(2, 3, 32, 32)
    row = matrix(weighted(model, images, 3))[:, 0, 1:]
    assert_close(relevance(model, images, target=3).flatten(1), row)


def test_all_patches_read_alike_and_what_they_hold_of_themselves_is_left_out() -> None:
    model, images = randomise(tiny("vit_base_patch16_gap_224")).eval(), torch.randn(2, 3, 32, 32)
    rows = matrix(weighted(model, images, 3)).mean(1) - 1 / 16
    assert_close(relevance(model, images, target=3).flatten(1), rows, 1e-4)


def test_a_probe_reads() -> None:
    model, images = randomise(tiny("vit_base_patch16_siglip_224")).eval(), torch.randn(2, 3, 32, 32)
    *blocks, probe = weighted(model, images, 3)
    assert_close(relevance(model, images, target=3).flatten(1), (probe @ matrix(blocks))[:, 0])


def test_a_class_token_that_joins_late_reads() -> None:
    model, images = randomise(tiny("cait_xxs24_224")).eval(), torch.randn(2, 3, 32, 32)
    maps = [
        nn.functional.pad(m, (1, 0, 1, 0) if m.shape[-1] == 16 else (0, 0, 0, 16)) for m in weighted(model, images, 3)
    ]
    assert [m.shape[1:] for m in maps] == [(17, 17)] * 4
    assert_close(relevance(model, images, target=3).flatten(1), matrix(maps)[:, 0, 1:])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "tnt_ti_patch16_224", "focal_tiny_224", "cvt_13_224"])
def test_attention_gradients_add_up_to_all_that_speaks_for_the_class(name: str) -> None:
    model = randomise(tiny(name)).eval()
    images = torch.randn(2, 3, *[64 if "focal" in name else 32] * 2)
    with record(model) as maps:
        score = model(images)[:, 1].sum()
    total = torch.zeros(2)
    for site, gradient in zip(list(maps), torch.autograd.grad(score, list(maps.values())), strict=True):
        speaks = (maps[site].detach() * gradient).clamp(min=0).mean(1)
        placed = maps.places[site].keys >= 0 if site in maps.places else torch.arange(speaks.shape[-1]) > 0
        folds = speaks.unflatten(0, (2, -1))
        total += (folds * placed.expand(folds.shape[1:])).sum((1, 2, 3))
    found = attention_gradient(model, images, target=1)
    torch.testing.assert_close(found.sum((1, 2)), total)


# ------------------------------------------------------------------ what it promises


def test_two_classes_two_maps_and_rollout_one() -> None:
    model, images = randomise(tiny("vit_tiny_patch16_224")).eval(), torch.randn(2, 3, 32, 32)
    first, second = (relevance(model, images, target=target) for target in (0, 1))
    assert difference(first, second) > 0.1
    assert torch.equal(rollout_map(model, images), rollout_map(model, images))
    each = relevance(model, images, target=torch.tensor([0, 1]))
    torch.testing.assert_close(each, torch.stack([first[0], second[1]]))
    best = model(images).argmax(1)
    torch.testing.assert_close(relevance(model, images), relevance(model, images, target=best))


@pytest.mark.parametrize("method", [relevance, attention_gradient])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_gap_224", "vit_base_patch16_siglip_224", "cait_xxs24_224"]
)
def test_zeros_where_nothing_speaks_for_the_class(name: str, method: Any) -> None:
    model: Any = randomise(tiny(name)).eval()
    nn.init.zeros_(model.head.weight)
    found = method(model, torch.randn(2, 3, 32, 32), target=1)
    assert torch.equal(found, torch.zeros(2, 4, 4))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "igpt_small_32"])
def test_frozen_models_and_no_grad_change_nothing(name: str) -> None:
    model = randomise(tiny(name)).eval()
    images = torch.rand(2, 3, *[8 if "igpt" in name else 32] * 2)
    expected = attention_gradient(model, images, target=1)
    with torch.no_grad():
        assert torch.equal(attention_gradient(model.requires_grad_(False), images, target=1), expected)
    assert expected.max() > 0
    assert not expected.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad


def test_models_without_one_set_of_tokens_say_so() -> None:
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"relevance is not available for swin because .*; use attention-gradient"):
        relevance(tiny("swin_tiny_patch4_window7_224"), images)
    with pytest.raises(UserError, match=r"attention-gradient is not available for mixer because .*; use gradcam"):
        attention_gradient(tiny("mixer_s32_224"), images)


# ------------------------------------------------------------------ timm


@pytest.fixture(scope="module")
def deit() -> tuple[nn.Module, nn.Module, Tensor]:
    """DeiT-Ti, timm's of the same weights with attention unfused, and images."""
    ours: Any = randomise(create_model("deit_tiny_patch16_224", num_classes=10)).eval()
    theirs: Any = timm.create_model("deit_tiny_patch16_224", num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for block in theirs.blocks:
        block.attn.fused_attn = False
    return ours, theirs, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def hooked(theirs: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """timm's attention, block by block, as its dropout hands it on, and the logits."""
    maps: list[Tensor] = []
    hooks = [b.attn.attn_drop.register_forward_hook(lambda _m, _i, out: maps.append(out)) for b in theirs.blocks]
    logits = theirs(images)
    for hook in hooks:
        hook.remove()
    assert len(maps) == 12
    return maps, logits


def test_relevance_is_that_of_the_authors_notebook_on_timms_deit(deit: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """Transformer_MM_explainability_ViT.ipynb of hila-chefer/Transformer-MM-Explainability: an image at a time."""
    ours, theirs, images = deit
    targets = [7, 2]
    found = relevance(ours, images, target=torch.tensor(targets))
    for index, target in enumerate(targets):
        maps, logits = hooked(theirs, images[index : index + 1])
        for attention in maps:
            attention.retain_grad()
        logits[0, target].backward()
        whole = torch.eye(197)
        for attention in maps:
            assert attention.grad is not None
            whole = whole + (attention.grad[0] * attention[0]).detach().clamp(min=0).mean(0) @ whole
        assert_close(found[index], whole[0, 1:].reshape(14, 14), 1e-4)


def test_rollout_is_that_of_timms_attention(deit: tuple[nn.Module, nn.Module, Tensor]) -> None:
    ours, theirs, images = deit
    with torch.no_grad():
        maps, _ = hooked(theirs, images)
    whole = torch.eye(197).expand(2, -1, -1)
    for attention in maps:
        mixing = attention.mean(1) + torch.eye(197)
        whole = mixing / mixing.sum(-1, keepdim=True) @ whole
    assert_close(rollout_map(ours, images), whole[:, 0, 1:].reshape(2, 14, 14), 1e-4)
