"""The moving average: its closed form, torch's own, exact originals, tied weights, and states of other models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

from vitrail.models import create_model
from vitrail.recipe import Optim
from vitrail.training.average import Average
from vitrail.training.optim import optimizer
from vitrail.training.sam import ascend


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def learn(model: nn.Module, seed: int) -> None:
    """Other weights, and statistics that follow a batch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    model.train()
    model(torch.randn(5, 3, generator=generator))


def bits(model: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_its_closed_form() -> None:
    model = network()
    average = Average(model, 0.5)
    expected = torch.zeros(4, 3)
    shares = []
    for t in range(12):
        learn(model, t)
        average.update(model)
        shares.append(min(0.5, (1 + t) / (10 + t)) if t else 0.0)
        expected = shares[-1] * expected + (1 - shares[-1]) * model[0].weight.detach()
    assert shares[:2] == [0.0, 2 / 11]
    assert shares[-1] == 0.5, "the decay itself is reached"
    found = average.state_dict()
    torch.testing.assert_close(found["0.weight"], expected)
    assert int(found["1.num_batches_tracked"]) == int(found["count"]) == 12
    assert not torch.equal(found["1.running_mean"], model[1].running_mean), "buffers are averaged too"


def test_it_is_torchs() -> None:
    """torch.optim.swa_utils with the same rule, buffers included."""

    def rule(averaged: Any, current: Any, count: Any) -> None:
        weight = 1 - min(0.9, (1 + float(count)) / (10 + float(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    model = network()
    ours = Average(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=torch.no_grad()(rule), use_buffers=True)
    for t in range(20):
        learn(model, t)
        ours.update(model)
        theirs.update_parameters(model)
    with ours.applied(model):
        assert same(bits(model), bits(theirs.module))


def test_applied_gives_the_averages_and_takes_them_back_exactly() -> None:
    model = network()
    average = Average(model, 0.9)
    for t in range(3):
        learn(model, t)
        average.update(model)
    before, held = bits(model), {name: value.clone() for name, value in average.state_dict().items()}
    with average.applied(model):
        assert same(bits(model) | {"count": held["count"]}, held)
        learn(model, 9)  # whatever happens within is undone, and the average does not see it
    assert same(bits(model), before)
    assert same(average.state_dict(), held)
    with pytest.raises(ZeroDivisionError), average.applied(model):
        1 / 0  # noqa: B018
    assert same(bits(model), before)


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    model = network()
    first = Average(model, 0.9)
    for t in range(3):
        learn(model, t)
        first.update(model)
    second = Average(network(), 0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(model, 7)
    first.update(model)
    second.update(model)
    assert same(first.state_dict(), second.state_dict())
    assert set(first.state_dict()) == {*model.state_dict(), "count"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop("count"), KeyError),
        (lambda state: state.pop("0.weight"), KeyError),
        (lambda state: state.update(more=torch.zeros(1)), KeyError),
        (lambda state: state.update({"0.weight": torch.zeros(4, 4)}), RuntimeError),
    ],
)
def test_the_average_of_another_model_is_refused(change: Any, error: type[Exception]) -> None:
    average = Average(network(), 0.9)
    state = {name: value.clone() + 1 for name, value in average.state_dict().items()}
    before = {name: value.clone() for name, value in average.state_dict().items()}
    change(state)
    with pytest.raises(error):
        average.load_state_dict(state)
    assert same(average.state_dict(), before), "nothing is half loaded"


def test_tied_weights_are_averaged_once() -> None:
    tied, alone = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
    tied[1].weight = tied[0].weight
    average, one = Average(tied, 0.9), Average(alone, 0.9)
    for t in range(4):
        with torch.no_grad():
            tied[0].weight.fill_(float(t * t))
            alone.weight.fill_(float(t * t))
        average.update(tied)
        one.update(alone)
    state = average.state_dict()
    assert torch.equal(state["0.weight"], one.state_dict()["weight"])
    assert torch.equal(state["0.weight"], state["1.weight"])
    with average.applied(tied):
        assert tied[0].weight is tied[1].weight
        assert torch.equal(tied[0].weight, one.state_dict()["weight"])
    assert tied[0].weight[0, 0] == 9.0
    again = Average(tied, 0.9)
    again.load_state_dict(copy.deepcopy(state))
    assert same(again.state_dict(), state)


def test_half_precision_weights_have_a_float32_average() -> None:
    """bfloat16 has 8 bits: 1 + 0.001 would stay 1 there."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = Average(model, 0.999)
    for _ in range(2):
        average.update(model)
    average.count = 10**6
    nn.init.constant_(model.weight, 2.0)
    average.update(model)
    assert average.state_dict()["weight"].dtype == torch.float32
    assert float(average.state_dict()["weight"]) == pytest.approx(1.001)


def test_a_model_of_ours_scores_with_its_average() -> None:
    model = create_model("vit_pico_patch2_8").eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    average = Average(model, 0.9)
    average.update(model)
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
    assert not torch.equal(model(images), before)
    with average.applied(model):
        assert torch.equal(model(images), before)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "adafactor"])
def test_sharded_weights_learn_and_are_averaged_like_whole_ones(name: Any) -> None:
    """With SAM. After scoring with the average, FSDP's next forward must not use the weights gathered for it."""
    whole, sharded = (nn.Sequential(nn.Sequential(nn.Linear(33, 33), nn.GELU()), nn.Linear(33, 40)) for _ in "ab")
    sharded.load_state_dict(whole.state_dict())
    for part in (sharded[0], sharded):  # the last layer is the root's own, which stays gathered after a forward
        fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
    images = torch.randn(8, 33, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (whole, sharded):
        learner, average = optimizer(model, Optim(name=name, lr=0.1)), Average(model, 0.9)
        for _ in range(4):
            model(images).square().mean().backward()
            restore = ascend(list(model.parameters()), 0.5)
            model(images).square().mean().backward()
            restore()
            learner.step()
            learner.zero_grad()
            average.update(model)
        with average.applied(model), torch.no_grad():
            averaged = model(images)
        with torch.no_grad():
            found.append((averaged, model(images)))
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3, "the average is another model"
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
