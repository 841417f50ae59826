"""SAM: the quadratic of the paper's first-order step in closed form, a plain reference, and what must not change."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from vitrail.training.sam import ascend, frozen_statistics


def test_the_quadratic_in_closed_form() -> None:
    """L = w A w / 2 with A = diag(10, 1) at (3, -1): e = rho g / ||g||, and the gradient there is A (w + e)."""
    curvature = torch.tensor([10.0, 1.0])
    weights = nn.Parameter(torch.tensor([3.0, -1.0]))

    def gradient() -> Tensor:
        (0.5 * (curvature * weights**2).sum()).backward()
        assert weights.grad is not None
        return weights.grad

    gradient()
    restore = ascend([weights], 0.05)
    assert weights.grad is None
    torch.testing.assert_close(weights.detach(), torch.tensor([3.0499722, -1.00166572]), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient(), torch.tensor([30.499723, -1.0016657]), rtol=0, atol=1e-5)
    restore()
    assert weights.tolist() == [3.0, -1.0]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))


def loss(model: nn.Module) -> Tensor:
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    return nn.functional.cross_entropy(model(images), torch.arange(16) % 3)


def test_a_step_is_that_of_a_plain_reference() -> None:
    """Written out parameter by parameter, with one norm over all of them and subtraction at the end."""
    ours, theirs = network(), network()
    first, second = (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (ours, theirs))
    for _ in range(5):
        loss(ours).backward()
        restore = ascend(list(ours.parameters()), 0.3)
        loss(ours).backward()
        restore()
        first.step()
        first.zero_grad()

        gradients = torch.autograd.grad(loss(theirs), list(theirs.parameters()))
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        steps = [0.3 * gradient / norm for gradient in gradients]
        with torch.no_grad():
            for weights, step in zip(theirs.parameters(), steps, strict=True):
                weights += step
        uphill = torch.autograd.grad(loss(theirs), list(theirs.parameters()))
        with torch.no_grad():
            for weights, step in zip(theirs.parameters(), steps, strict=True):
                weights -= step
        for weights, gradient in zip(theirs.parameters(), uphill, strict=True):
            weights.grad = gradient
        second.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert not torch.equal(next(ours.parameters()), next(network().parameters()))


def test_the_bits_come_back() -> None:
    """1e8 and 1e-12 in one vector: adding and subtracting the step again would lose the small one."""
    weights = nn.Parameter(torch.tensor([1e8, 1e-12, 0.1, -0.0]))
    frozen = nn.Parameter(torch.ones(2))
    before = weights.detach().clone()
    weights.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    restore = ascend([weights, frozen], 0.7)
    assert not torch.equal(weights.detach(), before)
    assert torch.equal(frozen.detach(), torch.ones(2)), "what has no gradient stays"
    restore()
    assert torch.equal(weights.detach().view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("gradient", [0.0, math.inf, math.nan])
def test_without_a_direction_nothing_moves(gradient: float) -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    weights.grad = torch.tensor([0.0, gradient])
    ascend([weights], 0.5)
    assert weights.tolist() == [1.0, 2.0]
    assert weights.grad is None


@pytest.mark.parametrize("scale", [1e-18, 65536.0])
def test_only_the_direction_counts(scale: float) -> None:
    weights = nn.Parameter(torch.tensor([0.0, 0.0]))
    weights.grad = scale * torch.tensor([3.0, 4.0])
    ascend([weights], 0.5)
    torch.testing.assert_close(weights.detach(), torch.tensor([0.3, 0.4]))


def test_batch_norm_remembers_the_first_pass_only() -> None:
    model, once = network(), network()
    loss(once)
    loss(model).backward()
    restore = ascend(list(model.parameters()), 0.5)
    with frozen_statistics(model):
        changed = loss(model)
    restore()
    for name, value in once[1].state_dict().items():
        assert torch.equal(model[1].state_dict()[name], value), name
    assert not torch.equal(changed, loss(copy.deepcopy(once))), "the second pass saw other weights"
    assert model[1].track_running_stats
    loss(model)
    assert int(model[1].num_batches_tracked) == 2, "and remembers again afterwards"


def test_the_second_pass_normalises_with_its_batch() -> None:
    model, plain = network(), network()
    with frozen_statistics(model):
        assert torch.equal(loss(model), loss(plain))
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):
        1 / 0  # noqa: B018
    assert model[1].track_running_stats
