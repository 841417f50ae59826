"""One update is that of a plain loop written out here, whatever the recipe asks for; half precision; frozen epochs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import bits, read, stopped, tiny
from torch import Tensor, nn
from toy_data import recipe as toy_recipe

from vitrail import checkpoint
from vitrail.data.loader import Batch, Loader, hash_seed
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.run import open_data
from vitrail.training import loop
from vitrail.training.learner import Learner
from vitrail.training.resolve import resolve

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution, BatchNorm, dropout and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)  # BatchNorm takes it away
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 36, 5)

    def heads(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.head(self.drop(self.bn(self.conv(images)).relu().flatten(1)))
        return said


class Labels:
    """Cross-entropy, without mixing."""

    metric = "top1"

    def module(self, model: nn.Module) -> nn.Module:
        return model

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.images, batch.labels

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        return F.cross_entropy(module(parts[0]).float(), parts[1])

    def score(self, module: nn.Module, loader: Loader, device: torch.device) -> dict[str, Any]:
        raise NotImplementedError


class Steep(Labels):
    """A loss that is finite and whose gradient is not."""

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        return super().loss(module, *parts) + (module(parts[0]).float() * 0).sum().sqrt()


def batches(count: int, images: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(images, 3, 8, 8, generator=generator),
            torch.randint(5, (images,), generator=generator),
            torch.arange(images),
            [],
        )
        for _ in range(count)
    ]


def learner(recipe: Recipe, task: Labels | None = None) -> Learner:
    made = Learner(recipe, task or Labels(), Net(), CPU, torch.zeros(2, dtype=torch.long))
    made.train(frozen=False)
    return made


LR = 1e-2


def plain_loop(net: Net, recipe: Recipe, frozen: int, given: list[Batch]) -> list[tuple[float, float]]:
    """What a textbook would write, with the rule of davda54/sam for SAM: loss and norm of every update."""
    optim = recipe.optim
    head_decay = optim.weight_decay if optim.head_weight_decay is None else optim.head_weight_decay
    low, high = LR * optim.layer_decay, LR * optim.head_lr
    groups = [
        {"params": [net.conv.weight], "lr": low, "weight_decay": optim.weight_decay},
        {"params": [*net.bn.parameters()], "lr": low, "weight_decay": 0.0},
        {"params": [net.head.weight], "lr": high, "weight_decay": head_decay},
        {"params": [net.head.bias], "lr": high, "weight_decay": 0.0},
    ]
    steps = torch.optim.AdamW(groups, betas=optim.betas)
    said = []
    for step, batch in enumerate(given):
        body = [parameter for name, parameter in net.named_parameters() if not name.startswith("head")]
        for parameter in body:
            parameter.requires_grad_(step >= frozen)
        net.train(step >= frozen)

        def backward(seed: int = step, batch: Batch = batch) -> float:
            torch.manual_seed(hash_seed(seed, 0))
            whole, n = 0.0, len(batch.images)
            for where in torch.arange(n).tensor_split(optim.accumulate):
                part = F.cross_entropy(net(batch.images[where]), batch.labels[where]) * len(where) / n
                part.backward()
                whole += part.item()
            return whole

        loss = backward()
        if optim.rho:
            moved = [parameter for parameter in net.parameters() if parameter.grad is not None]
            length = torch.stack([p.grad.norm() for p in moved if p.grad is not None]).norm() + 1e-12
            old = [parameter.detach().clone() for parameter in moved]
            with torch.no_grad():
                for parameter in moved:
                    parameter.add_(parameter.grad, alpha=optim.rho / float(length))  # type: ignore[arg-type]
            net.zero_grad()
            net.bn.momentum, count = 0.0, net.bn.num_batches_tracked.clone()  # type: ignore[union-attr]
            backward()
            net.bn.momentum, net.bn.num_batches_tracked = 0.1, count
            with torch.no_grad():
                for parameter, own in zip(moved, old, strict=True):
                    parameter.copy_(own)
        norm = nn.utils.clip_grad_norm_(net.parameters(), optim.clip_grad or 1e9)
        steps.step()
        steps.zero_grad()
        said.append((loss, float(norm)))
    return said


WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (0, {}),
    "clipped": (0, {"optim__clip_grad": 0.1}),
    "parts": (0, {"optim__accumulate": 3}),
    "SAM": (0, {"optim__rho": 0.5}),
    "SAM in parts, clipped": (0, {"optim__rho": 0.5, "optim__accumulate": 3, "optim__clip_grad": 0.2}),
    "rates and decays": (
        0,
        {"optim__head_lr": 3.0, "optim__layer_decay": 0.5, "optim__head_weight_decay": 2.0, "optim__weight_decay": 0.5},
    ),
    "frozen first": (2, {"optim__head_lr": 2.0}),
    "SAM, frozen first": (2, {"optim__rho": 0.5}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_update_is_that_of_a_plain_loop(way: str) -> None:
    """8 images in 3 parts are 3, 3 and 2; dropout has the same masks in both passes of SAM, and BatchNorm remembers
    the first one alone."""
    frozen, changes = WAYS[way]
    recipe, given = toy_recipe(**changes), batches(4)
    net = Net()
    expected = plain_loop(net, recipe, frozen, given)
    ours = learner(recipe)
    for step, batch in enumerate(given):
        ours.train(frozen=step < frozen)
        said = ours.gradients(batch, LR, step)
        ours.apply()
        assert said == pytest.approx(expected[step], rel=1e-5)
    wanted, state = net.state_dict(), ours.module.state_dict()
    assert wanted.keys() == state.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6, msg=name)
    start = Net().state_dict()
    assert all((wanted[name] - start[name]).abs().max() > 1e-3 for name in wanted)


def test_what_is_frozen_keeps_its_bits_and_has_no_history() -> None:
    ours = learner(toy_recipe(optim__weight_decay=0.5, ema=0.9))
    start = {name: value.clone() for name, value in ours.module.state_dict().items()}
    ours.train(frozen=True)
    for step, batch in enumerate(batches(2)):
        ours.gradients(batch, LR, step)
        ours.apply()
    after = ours.module.state_dict()
    assert {name for name in start if not torch.equal(start[name], after[name])} == {"head.weight", "head.bias"}
    assert ours.average is not None
    assert all(torch.equal(ours.average.values[name], start[name]) for name in start if not name.startswith("head"))
    assert set(ours.optimizer.state) == set(ours.module.get_submodule("head").parameters())
    ours.train(frozen=False)
    ours.gradients(batches(3)[-1], LR, 2)
    ours.apply()
    steps = {name: int(ours.optimizer.state[each]["step"]) for name, each in ours.module.named_parameters()}
    assert steps == {name: 3 if name.startswith("head") else 1 for name in steps}
    after = ours.module.state_dict()
    assert not [name for name in start if torch.equal(start[name], after[name])]


@pytest.mark.parametrize("task", ["classify", "masked_patches"])
def test_a_run_with_frozen_epochs_resumes_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """While frozen, at the boundary, after it. What a task adds to the model learns while the model is frozen."""
    mixing = {"augment__mixup": 0.0, "augment__cutmix": 0.0} if task == "masked_patches" else {}
    recipe = tiny(schedule__frozen_epochs=1, checkpoint_minutes=0.0, task=task, **mixing)
    straight = loop.fit(recipe, tmp_path / "straight")
    assert math.isfinite(read(straight, "final.json")["loss"])
    for step in (1, 3, 4):
        out = stopped(monkeypatch, tmp_path / f"run{step}", step, recipe)
        loop.resume(out)
        assert bits(out) == bits(straight), step


# ---------------------------------------------------------------------- half precision


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_half_precision_reports_and_clips_what_full_precision_would(precision: Any, rho: float) -> None:
    (batch,) = batches(1)
    full = learner(toy_recipe(optim__rho=rho)).gradients(batch, LR, 0)
    ours = learner(toy_recipe(optim__rho=rho, precision=precision))
    assert ours.gradients(batch, LR, 0) == pytest.approx(full, rel=3e-2)
    clipped = learner(toy_recipe(optim__rho=rho, optim__clip_grad=0.01, precision=precision))
    assert clipped.gradients(batch, LR, 0) == pytest.approx(full, rel=3e-2)
    gradients = [parameter.grad for parameter in clipped.learned if parameter.grad is not None]
    assert float(nn.utils.get_total_norm(gradients)) == pytest.approx(0.01, rel=1e-3)
    assert len(gradients) == len(clipped.learned)


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_an_overflow_halves_the_scale_and_skips_the_update(rho: float) -> None:
    (batch,) = batches(1)
    ours = learner(toy_recipe(precision="fp16", optim__rho=rho, optim__clip_grad=1.0))
    state = ours.state()
    state["scaler"]["scale"] = 2.0**40
    ours.restore(state)
    before = {name: value.clone() for name, value in ours.module.named_parameters()}
    for k in range(1, 60):
        loss, norm = ours.gradients(batch, LR, 0)
        assert ours.diverged(loss, norm) is None
        ours.apply()
        if math.isfinite(norm):
            break
        assert ours.scaler.get_scale() == 2.0 ** (40 - k)
        assert all(torch.equal(before[name], value) for name, value in ours.module.named_parameters())
    assert 5 < k < 35, "it overflows at first, and no longer"
    assert not any(torch.equal(before[name], value) for name, value in ours.module.named_parameters())


def test_a_gradient_that_is_never_finite_is_no_overflow() -> None:
    (batch,) = batches(1)
    ours = learner(toy_recipe(precision="fp16"), Steep())
    for _ in range(16):
        loss, norm = ours.gradients(batch, LR, 0)
        assert ours.diverged(loss, norm) is None
        ours.apply()
    assert ours.diverged(*ours.gradients(batch, LR, 0)) == "the gradient's norm became nan"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_in_half_precision_learns_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    recipe = tiny(precision=precision, checkpoint_minutes=0.0)
    straight = loop.fit(recipe, tmp_path / "straight")
    state = checkpoint.load(straight / "checkpoints")
    assert state is not None
    assert ("scale" in state["scaler"]) == (precision == "fp16"), "its present scale is kept"
    log = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert log[1]["train_loss"] < log[0]["train_loss"]
    out = stopped(monkeypatch, tmp_path / "run", 2, recipe)
    loop.resume(out)
    assert bits(out) == bits(straight)


def test_a_divergent_run_in_half_precision_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the (loss|gradient's norm) became (nan|inf) at step \d+ .* before that upd"):
        loop.fit(tiny(precision="fp16", optim__lr=1e20), tmp_path / "run")


# ---------------------------------------------------------------------- what reaches the model


def trainer(recipe: Recipe, folder: Path) -> loop.Trainer:
    source = open_data(recipe)
    made = loop.Trainer(resolve(recipe, source), folder, source)
    made.learner.train(frozen=False)
    return made


@pytest.mark.parametrize(
    ("loss", "bias", "expected"),
    [
        ("cross_entropy", 0.0, math.log(10)),
        ("cross_entropy", -6.9, math.log(10)),
        ("bce", 0.0, 10 * math.log(2)),
        ("bce", -6.9, 6.9 + 10 * math.log1p(math.exp(-6.9))),
    ],
)
def test_the_first_loss_of_a_head_of_zeros(tmp_path: Path, loss: Any, bias: float, expected: float) -> None:
    made = trainer(tiny(head_bias=bias, loss=loss), tmp_path)
    (first, *_) = made.loader.epoch(0)
    assert made.update(first, 1e-3) == pytest.approx(expected, rel=1e-6)


def test_dropout_reaches_the_model(tmp_path: Path) -> None:
    made = trainer(tiny(dropout=0.25), tmp_path)
    rates = [layer.p for layer in made.model.modules() if isinstance(layer, nn.Dropout)]
    assert rates.count(0.25) >= 2


@pytest.mark.slow
def test_a_compiled_model_trains_with_the_same_losses(tmp_path: Path) -> None:
    logs = []
    for compiled in (False, True):
        out = loop.fit(tiny(compile=compiled, schedule__epochs=1), tmp_path / str(compiled))
        logs.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()])
    for plain, made in zip(*logs, strict=True):
        assert made["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
        assert made["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)


# ---------------------------------------------------------------------- when a checkpoint is written


@pytest.mark.parametrize(("minutes", "steps"), [(0.0, [1, 2, 3, 3, 4, 5, 6, 6]), (1e9, [3, 6])])
def test_checkpoints_within_epochs_come_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, steps: list[int]
) -> None:
    written = []
    save = checkpoint.save

    def noted(folder: Path, step: int, state: dict[str, Any]) -> Path:
        written.append(step)
        return save(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", noted)
    loop.fit(replace(tiny(), checkpoint_minutes=minutes), tmp_path / "run")
    assert written == steps
