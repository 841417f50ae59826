"""CKA: printed figures, Song's sums written out, invariances, and every architecture with itself and with another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.similarity import MinibatchCKA, cka, gram, linear_cka, unbiased_hsic
from vitrail.interpretability.stream import Flow, tapped, trunk


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unbiased(x: Tensor, y: Tensor, size: int | None = None) -> float:
    """CKA of features (n, p) and (n, q) in batches of `size`."""
    sums = MinibatchCKA()
    for one, two in zip(x.split(size or len(x)), y.split(size or len(x)), strict=True):
        sums.add(gram(one)[None], gram(two)[None])
    return float(sums.values()[0, 0])


def kornblith() -> tuple[Tensor, Tensor]:
    """The features of the authors' demo."""
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return torch.from_numpy(x), torch.from_numpy(random.randn(100, 10) + x)


def song(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC1 as Song et al. define it: means over pairs, quadruples and triples of different images."""
    images = range(len(k))
    pairs = [k[i, j] * l[i, j] for i, j in itertools.permutations(images, 2)]
    fours = [k[i, j] * l[q, r] for i, j, q, r in itertools.permutations(images, 4)]
    threes = [k[i, j] * l[i, q] for i, j, q in itertools.permutations(images, 3)]
    return float(np.mean(pairs) + np.mean(fours) - 2 * np.mean(threes))


def hsic(x: Tensor, y: Tensor) -> float:
    return float(unbiased_hsic(x @ x.mT, y @ y.mT))


def in_feature_space(x: Tensor, y: Tensor) -> float:
    """Unbiased CKA without Gram matrices (Kornblith et al.'s demo)."""
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)

    def product(a: Tensor, b: Tensor) -> float:
        rows = a.square().sum(1), b.square().sum(1)
        plain = (a.mT @ b).square().sum() - n / (n - 2) * rows[0] @ rows[1]
        return float(plain + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)))

    return product(x, y) / (product(x, x) * product(y, y)) ** 0.5


# ---------------------------------------------------------------------- the measure


def test_the_authors_figures() -> None:
    x, y = kornblith()
    assert linear_cka(x, y) == pytest.approx(0.557613, abs=1e-6)
    assert unbiased(x, y) == pytest.approx(0.513456, abs=1e-6)
    assert unbiased(x, y, 25) == pytest.approx(0.513268, abs=1e-6)


def test_only_the_biased_form_sees_likeness_in_noise() -> None:
    random = np.random.RandomState(0)
    x, y = (torch.from_numpy(random.randn(128, 768)) for _ in range(2))
    assert linear_cka(x, y) == pytest.approx(0.859, abs=1e-3)
    assert unbiased(x, y) == pytest.approx(0.010, abs=1e-3)


@pytest.mark.parametrize("n", [4, 5, 8])
def test_unbiased_hsic_is_songs_sum(n: int) -> None:
    x, y = draw(n, 3) + 2, draw(n, 5, seed=1)
    expected = song(x @ x.mT, y @ y.mT)
    assert abs(expected) > 1e-3
    assert hsic(x, y) == pytest.approx(expected, rel=1e-9)
    assert float(unbiased_hsic(gram(x), gram(y))) == pytest.approx(expected, rel=1e-9)  # centring changes nothing


def test_the_two_spaces_agree() -> None:
    x, y = kornblith()
    assert unbiased(x, y) == pytest.approx(in_feature_space(x, y), rel=1e-10)
    one, two = x - x.mean(0), y - y.mean(0)
    norms = (one.mT @ one).norm() * (two.mT @ two).norm()
    assert linear_cka(x, y) == pytest.approx(float((one.mT @ two).square().sum() / norms), rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(5, 40), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_rotation_scale_and_shift_change_nothing(seed: int, n: int, scale: float, shift: float) -> None:
    x, y = draw(n, 6, seed=seed), draw(n, 4, seed=seed + 1)
    turned = scale * x @ torch.linalg.qr(draw(6, 6, seed=seed + 2)).Q + shift
    for measure in (linear_cka, unbiased):
        assert measure(turned, y) == pytest.approx(measure(x, y), abs=1e-8)
        assert measure(y, x) == pytest.approx(measure(x, y), abs=1e-12)
        assert measure(x, turned) == pytest.approx(1, abs=1e-8)
    assert 0 <= linear_cka(x, y) <= 1 + 1e-12


def test_an_arbitrary_linear_map_changes_it() -> None:
    x, y = kornblith()
    stretched = x @ torch.diag(torch.logspace(0, 2, 10, dtype=torch.float64))
    assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 0.1
    assert unbiased(x, stretched) < 0.9


def test_batches_are_averaged_before_the_ratio() -> None:
    x, y = kornblith()
    x[:25] *= 10
    quarters = [
        [hsic(a, b) for a, b in ((p, q), (p, p), (q, q))] for p, q in zip(x.split(25), y.split(25), strict=True)
    ]
    cross, one, two = np.mean(quarters, 0)
    ratios = np.mean([c / (a * b) ** 0.5 for c, a, b in quarters])
    assert unbiased(x, y, 25) == pytest.approx(cross / (one * two) ** 0.5, rel=1e-10)
    assert abs(unbiased(x, y, 25) - ratios) > 0.005


def test_other_sizes_are_dropped_and_counted() -> None:
    x = gram(draw(23, 6))[None]
    sums = MinibatchCKA()
    for batch in (x[:, :3, :3], x[:, :8, :8], x[:, 8:16, 8:16], x[:, 16:, 16:]):
        sums.add(batch, batch)
    assert (sums.images, sums.dropped) == (16, 10)
    assert sums.values() == pytest.approx(np.ones((1, 1)))
    empty = MinibatchCKA()
    empty.add(x[:, :3, :3], x[:, :3, :3])
    with pytest.raises(UserError, match="no batch of 4 images or more"):
        empty.values()
    with pytest.raises(UserError, match="at least 4 images, not 3"):
        unbiased_hsic(x[0, :3, :3], x[0, :3, :3])


def test_what_does_not_vary_has_no_cka() -> None:
    x, same = draw(9, 4).float(), torch.full((9, 4), 0.1)
    assert np.isnan(linear_cka(x, same))
    sums = MinibatchCKA()
    sums.add(gram(torch.stack([x, same])), gram(x)[None])
    values = sums.values()[:, 0]
    assert values[0] == pytest.approx(1)
    assert np.isnan(values[1])


# ---------------------------------------------------------------------- models


def pictures(row: Row, batches: int = 2) -> list[Tensor]:
    return [draw(6, 3, row.side, row.side, seed=seed).float() for seed in range(batches)]


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture_with_itself(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    found = cka(model, pictures(row))
    depth = len(trunk(model))
    assert found.rows == found.columns == trunk(model)
    assert found.values.shape == (depth, depth)
    assert np.isfinite(found.values).all()
    np.testing.assert_allclose(found.values.diagonal(), 1, atol=1e-9)
    np.testing.assert_allclose(found.values, found.values.T, atol=1e-12)
    assert found.values.min() < 0.999, "blocks that change nothing say nothing"
    twice = cka(model, pictures(row), model)
    np.testing.assert_allclose(twice.values.diagonal(), 1, atol=1e-6)
    np.testing.assert_allclose(twice.values, found.values, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("tokens", ["flat", "mean"])
def test_two_families_at_their_own_sizes(tokens: str) -> None:
    vit = randomise(tiny("deit_tiny_distilled_patch16_224")).eval()
    cnn = randomise(tiny("botnet50_224")).eval()
    small = [draw(12, 3, 32, 32, seed=seed).float() for seed in (0, 1)]
    large = [nn.functional.interpolate(images, (64, 64)) for images in small]
    found = cka(vit, zip(small, large, strict=True), cnn, tokens=tokens)  # type: ignore[arg-type]
    assert found.values.shape == (len(trunk(vit)), len(trunk(cnn)))
    assert (found.rows, found.columns) == (trunk(vit), trunk(cnn))
    assert (found.images, found.dropped) == (24, 0)
    features = [
        [flows(model, images, tokens) for images in seen] for model, seen in ((vit, small), (cnn, large))
    ]  # [model][batch][block]
    for row, column in ((0, 0), (1, 3), (1, 4)):
        x, y = (torch.cat([batch[block] for batch in one]) for one, block in zip(features, (row, column), strict=True))
        assert found.values[row, column] == pytest.approx(unbiased(x, y, 12), abs=1e-5)
    turned = cka(cnn, zip(large, small, strict=True), vit, tokens=tokens)  # type: ignore[arg-type]
    np.testing.assert_allclose(turned.values, found.values.T, atol=1e-9)


def flows(model: nn.Module, images: Tensor, tokens: str) -> list[Tensor]:
    """What every block hands on, prefix first, (n, p) in float64."""
    seen: list[Tensor] = []

    def look(_name: str, flow: Flow) -> None:
        places = flow.grid.permute(0, 2, 3, 1).flatten(1, 2)
        whole = torch.cat([flow.prefix, places], 1).double()
        seen.append(whole.flatten(1) if tokens == "flat" else whole.mean(1))

    with torch.no_grad(), tapped(model, look):
        model(images)
    return seen


def test_shuffled_partners_are_unlike() -> None:
    model = randomise(tiny("vit_tiny_patch16_224")).eval()
    images = draw(48, 3, 32, 32).float()
    same = cka(model, [images], model).values.diagonal()
    apart = cka(model, [(images, images.flip(0))], model).values.diagonal()
    assert (apart < 0.2).all()
    assert (same > 0.999).all()


def test_a_dead_block_is_nan_and_the_rest_stands() -> None:
    model = randomise(tiny("mixer_s32_224")).eval()
    model.get_submodule(trunk(model)[0]).register_forward_hook(lambda _m, _i, out: torch.full_like(out, 0.3))
    values = cka(model, [draw(6, 3, 32, 32).float()]).values
    assert np.isnan(values).all(), "what follows a block that never changes never changes either"
    model = randomise(tiny("mixer_s32_224")).eval()
    model.get_submodule(trunk(model)[-1]).register_forward_hook(lambda _m, _i, out: torch.full_like(out, 0.3))
    values = cka(model, [draw(6, 3, 32, 32).float()]).values
    assert values[0, 0] == pytest.approx(1)
    assert np.isnan(values[-1]).all()
    assert np.isnan(values[:, -1]).all()


def test_what_cannot_be_compared_is_said() -> None:
    model = tiny("vit_tiny_patch16_224").eval()
    images = torch.zeros(4, 3, 32, 32)
    with pytest.raises(UserError, match='tokens is "cls"'):
        cka(model, [images], tokens="cls")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a batch is not images alone"):
        cka(model, [(images, images)])
    with pytest.raises(UserError, match="a batch is not images alone"):
        cka(model, [(images, torch.zeros(4))], model)
    with pytest.raises(UserError, match="a pair has 4 and 3 images"):
        cka(model, [(images, images[1:])], model)
    with pytest.raises(UserError, match="no batch of 4 images"):
        cka(model, [images[:3]])
