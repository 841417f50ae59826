"""The loss around a model, and on the way to another one: closed forms, and the model untouched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.landscape import interpolation, loss_landscape, random_direction
from vitrail.models import create_model


class Weights(nn.Module):
    """A model whose logits are its weights: the loss is a function of them alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.matrix.flatten(), self.bias]).expand(len(images), -1)


def quadratic(weights: Tensor, _labels: Tensor) -> Tensor:
    scales = torch.arange(1, weights.shape[1] + 1, dtype=weights.dtype)
    return (scales * weights**2).sum(1).mean() / 2


def batches(side: int = 32, sizes: tuple[int, ...] = (3, 2)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, side, side, generator=generator), torch.randint(5, (n,), generator=generator)) for n in sizes
    ]


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().numpy().tobytes()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor is not None
    }


def test_a_quadratic_is_drawn_as_it_is() -> None:
    model = Weights()
    found = loss_landscape(model, quadratic, batches(), steps=7, reach=1.5, seed=3)
    generator = torch.Generator().manual_seed(3)
    first, second = (random_direction(model, generator)["matrix"] for _ in range(2))
    np.testing.assert_allclose(found.offsets, np.linspace(-1.5, 1.5, 7))
    assert found.offsets[3] == 0
    for i, a in enumerate(found.offsets):
        for j, b in enumerate(found.offsets):
            weights = torch.cat([(model.matrix + a * first + b * second).flatten(), model.bias])
            assert found.losses[i, j] == pytest.approx(quadratic(weights[None], weights).item(), rel=1e-12)
    assert found.images == 5


def test_directions_have_the_norms_of_the_filters() -> None:
    model = randomise(tiny("vit_tiny_patch16_224"))
    direction = random_direction(model, torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        assert (name in direction) == (weight.ndim > 1)
        if weight.ndim > 1:
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1))
    assert len(direction["pos_embed"]) == 1, "a table is one filter"
    other = random_direction(model, torch.Generator().manual_seed(0))
    assert all(torch.equal(direction[name], other[name]) for name in direction)
    a, b = (random_direction(model, generator) for generator in [torch.Generator().manual_seed(0)] * 2)
    cosine = F.cosine_similarity(a["blocks.0.mlp.fc1.weight"].flatten(), b["blocks.0.mlp.fc1.weight"].flatten(), dim=0)
    assert abs(cosine) < 0.1, "two directions, not one"


def test_a_filter_of_zeros_stays() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[1] = 0
    direction = random_direction(model, torch.Generator().manual_seed(0))["weight"]
    assert direction[1].eq(0).all()
    assert direction[0].ne(0).all()


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_the_middle_is_the_model_and_the_model_stays(row: Row) -> None:
    model = randomise(tiny(row))
    part = next(iter(model.children()))
    part.eval()  # as a frozen part would be: modes come back module by module
    modes = [module.training for module in model.modules()]
    before = state_bytes(model)
    given = batches(row.side, (2,))
    found = loss_landscape(model, F.cross_entropy, given, steps=3, reach=0.5)
    assert [module.training for module in model.modules()] == modes
    assert state_bytes(model) == before
    assert found.losses.shape == (3, 3)
    with torch.no_grad():
        assert found.losses[1, 1] == F.cross_entropy(model.eval()(given[0][0]), given[0][1]).item()
    assert len(np.unique(found.losses)) > 5, "the loss moves with the weights"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_ends_it_early_leaves_no_trace(error: type[BaseException]) -> None:
    model = randomise(tiny("botnet50_224")).train()
    before, parameters = state_bytes(model), list(model.parameters())
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return F.cross_entropy(logits, labels)

    with pytest.raises(error):
        loss_landscape(model, loss, batches(64, (2,)), steps=3)
    assert state_bytes(model) == before
    assert model.training
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_images_count_alike_and_progress_is_told() -> None:
    model = randomise(tiny("mixer_s32_224"))
    told: list[tuple[int, int]] = []
    whole = batches(sizes=(5,))
    ((images, labels),) = whole
    parts = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    one = loss_landscape(model, F.cross_entropy, whole, steps=3, progress=lambda *at: told.append(at))
    two = loss_landscape(model, F.cross_entropy, parts, steps=3)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-5)
    assert told == [(point, 9) for point in range(1, 10)]


def test_halves_are_computed_in_float32() -> None:
    model = randomise(tiny("vit_tiny_patch16_224")).bfloat16()
    exact = copy.deepcopy(model).float()
    one = loss_landscape(model, F.cross_entropy, batches(), steps=3)
    two = loss_landscape(exact, F.cross_entropy, batches(), steps=3)
    np.testing.assert_array_equal(one.losses, two.losses)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_interpolation_between_two_bowls() -> None:
    """(w^2 - 1)^2 has minima at -1 and 1, and 1 between them; the barrier is over the line between the ends."""
    model, other = Weights(), Weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1)
        for parameter in other.parameters():
            parameter.fill_(1)

    def bowls(weights: Tensor, _labels: Tensor) -> Tensor:
        return ((weights**2 - 1) ** 2).mean() + 0.25 * weights.mean()

    found = interpolation(model, other.state_dict(), bowls, batches(), steps=21)
    np.testing.assert_allclose(found.losses[[0, 10, 20]], [-0.25, 1, 0.25], atol=1e-12)
    assert found.barrier == pytest.approx(1)
    assert interpolation(model, other.state_dict(), quadratic, batches(), steps=5).barrier == 0


def test_interpolation_ends_at_both_models() -> None:
    one, two = randomise(tiny("botnet50_224")), tiny("botnet50_224")
    given = batches(64, (2,))
    found = interpolation(one, two.state_dict(), F.cross_entropy, given, steps=3)
    with torch.no_grad():
        ends = [F.cross_entropy(model.eval()(given[0][0]), given[0][1]).item() for model in (one, two)]
    assert [found.losses[0], found.losses[-1]] == ends, "running statistics go along"


def test_mistakes() -> None:
    model = Weights()
    with pytest.raises(UserError, match="steps is 4; give an odd number"):
        loss_landscape(model, quadratic, batches(), steps=4)
    with pytest.raises(UserError, match="no images"):
        loss_landscape(model, quadratic, [])
    with pytest.raises(UserError, match="steps is 1"):
        interpolation(model, model.state_dict(), quadratic, batches(), steps=1)
    vit = tiny("vit_tiny_patch16_224")
    for other in (tiny("mixer_s32_224"), tiny("vit_tiny_patch16_224", depth=1)):
        with pytest.raises(UserError, match=r"the other model has no .* one architecture"):
            interpolation(vit, other.state_dict(), F.cross_entropy, batches())
    wide = create_model(
        "vit_tiny_patch16_224", num_classes=7, embed_dim=24, depth=2, num_heads=2, patch_size=8, img_size=32
    )
    with pytest.raises(UserError, match=r"no head.weight of shape \(5, 24\)"):
        interpolation(vit, wide.state_dict(), F.cross_entropy, batches())
