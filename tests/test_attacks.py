"""FGSM and PGD: closed form on a linear model, a slow version written out, and what must hold of every architecture."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from rows import Row
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn

from vitrail import create_model
from vitrail.comparison.attacks import fgsm, normalised, pgd
from vitrail.errors import UserError
from vitrail.interpretability.still import frozen

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Norm = Literal["linf", "l2"]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pixels(images: int, side: int = 8, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(images, 3, side, side, generator=seeded(1))


class Linear(nn.Module):
    """Two classes, the second with logit w . x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            0.02 * torch.randn(3, 8, 8, generator=seeded(0))
        )  # small: no probability rounds to 1

    def forward(self, x: Tensor) -> Tensor:
        logit = (x * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def small() -> nn.Module:
    return randomise(create_model("vit_pico_patch2_8", num_classes=5)).eval()


# ---------------------------------------------------------------------- closed form


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "l2"])
def test_a_linear_model_has_a_closed_form(attack: str) -> None:
    model, x, labels, eps = Linear(), pixels(4, low=0.3, high=0.7), torch.tensor([0, 1, 1, 0]), 0.05
    slope = model.weight.detach() / torch.tensor(STD)[:, None, None]  # of the logit in the pixels
    uphill = slope * (1 - 2 * labels)[:, None, None, None]  # the loss rises with the logit of the wrong class
    said: dict[str, Any] = {"mean": MEAN, "std": STD}
    if attack == "fgsm":
        moved = fgsm(model, x, labels, eps, **said)
    elif attack == "pgd":
        moved = pgd(model, x, labels, eps, step=0.02, steps=4, random_start=False, **said)
    else:
        moved = pgd(model, x, labels, eps, step=0.02, steps=4, random_start=False, norm="l2", **said)
    expected, dual = (uphill / slope.norm(), slope.norm()) if attack == "l2" else (uphill.sign(), slope.abs().sum())
    assert torch.allclose(moved - x, eps * expected, atol=1e-6)

    def margins(at: Tensor) -> Tensor:
        return model(normalised(at, MEAN, STD))[:, 1].detach() * (2 * labels - 1)

    assert torch.allclose(margins(x) - margins(moved), eps * dual.expand(4), rtol=1e-3), "eps times the dual norm"


def test_a_random_start_ends_in_the_same_corner() -> None:
    model, x, labels = Linear(), pixels(4, low=0.3, high=0.7), torch.tensor([0, 1, 1, 0])
    one, other = (pgd(model, x, labels, 0.05, mean=MEAN, std=STD, step=0.02, steps=6, seed=seed) for seed in (0, 1))
    assert torch.allclose(one, other, atol=1e-6)
    still = [pgd(model, x, labels, 0.05, mean=MEAN, std=STD, steps=0, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(still[0], still[1])
    assert not torch.equal(still[0], still[2])
    assert 0.045 < (still[0] - x).abs().max() <= 0.05 + 1e-6
    assert (still[0] - x).mean().abs() < 0.005, "about the image"


def test_starts_in_l2_fill_the_radius() -> None:
    x, labels = pixels(64, low=0.45, high=0.55), torch.zeros(64, dtype=torch.long)
    start = pgd(Linear(), x, labels, 1.0, mean=MEAN, std=STD, steps=0, norm="l2")
    radius = (start - x).flatten(1).norm(dim=1)
    assert radius.max() <= 1 + 1e-5
    assert 0.35 < radius.mean() < 0.65, "uniform from 0 to eps"


# ---------------------------------------------------------------------- written out


def slow_pgd(
    model: nn.Module, x: Tensor, labels: Tensor, eps: float, step: float, steps: int, norm: Norm, start: Tensor
) -> Tensor:
    """Image by image, with backward() and numbers clipped one after another."""
    centre, spread = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    out = []
    for i in range(len(x)):
        image, moved = x[i : i + 1], start[i : i + 1]
        for _ in range(steps):
            asked = moved.clone().requires_grad_()
            F.cross_entropy(model((asked - centre) / spread), labels[i : i + 1]).backward()
            assert asked.grad is not None
            if norm == "linf":
                moved = moved + step * torch.sign(asked.grad)
                moved = torch.minimum(torch.maximum(moved, image - eps), image + eps)
            else:
                moved = moved + step * asked.grad / math.sqrt(float((asked.grad**2).sum()))
                length = math.sqrt(float(((moved - image) ** 2).sum()))
                moved = image + (moved - image) * min(1.0, eps / length)
            moved = moved.clamp(0, 1)
        out.append(moved)
    return torch.cat(out)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.3), ("l2", 0.5), ("l2", 3.0)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_is_what_the_papers_write(norm: Norm, eps: float, random_start: bool) -> None:
    model, x, labels = small(), pixels(5), torch.arange(5)
    said: dict[str, Any] = {"mean": MEAN, "std": STD, "norm": norm, "random_start": random_start, "seed": 3}
    start = pgd(model, x, labels, eps, steps=0, **said)
    moved = pgd(model, x, labels, eps, step=eps / 4, steps=5, **said)
    expected = slow_pgd(model, x, labels, eps, eps / 4, 5, norm, start)
    assert torch.equal(start, x) != random_start
    assert (moved - expected).abs().max() < 1e-4
    length = (moved - x).flatten(1).norm(dim=1).max() if norm == "l2" else (moved - x).abs().max()
    assert length <= eps + 1e-5
    assert moved.min() >= 0
    assert moved.max() <= 1

    def loss(at: Tensor) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(normalised(at, MEAN, STD)), labels))

    assert loss(moved) > loss(x)


def test_fgsm_is_one_step_of_pgd() -> None:
    model, x, labels = small(), pixels(5), torch.arange(5)
    one = pgd(model, x, labels, 0.1, mean=MEAN, std=STD, step=0.1, steps=1, random_start=False)
    assert torch.allclose(fgsm(model, x, labels, 0.1, mean=MEAN, std=STD), one, atol=1e-6)


# ---------------------------------------------------------------------- what stays as it is


def test_nothing_moves_at_eps_0() -> None:
    model, x, labels = small(), pixels(3), torch.arange(3)
    assert torch.equal(fgsm(model, x, labels, 0.0, mean=MEAN, std=STD), x)
    for norm in ("linf", "l2"):
        assert torch.equal(pgd(model, x, labels, 0.0, mean=MEAN, std=STD, norm=norm), x)  # type: ignore[arg-type]


def test_a_flat_loss_leaves_images_alone() -> None:
    model = Linear()
    nn.init.zeros_(model.weight)
    x = pixels(3)
    moved = pgd(model, x, torch.zeros(3, dtype=torch.long), 0.1, mean=MEAN, std=STD, random_start=False, norm="l2")
    assert torch.equal(moved, x)


def test_the_model_is_as_it_was() -> None:
    model: Any = create_model("vit_pico_patch2_8", num_classes=5, drop_path_rate=0.3).train()
    model.blocks[0].eval()
    model.patch_embed.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    x, labels = pixels(3), torch.arange(3)
    one, other = (pgd(model, x, labels, mean=MEAN, std=STD, steps=2) for _ in range(2))
    assert torch.equal(one, other), "in eval mode: no drop path"
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not one.requires_grad
    with pytest.raises(RuntimeError, match="boom"), frozen(model):
        raise RuntimeError("boom")
    assert [module.training for module in model.modules()] == modes


def test_neighbours_and_autocast_change_nothing() -> None:
    model, x, labels = small(), pixels(4), torch.arange(4)
    together = fgsm(model, x, labels, mean=MEAN, std=STD)
    alone = torch.cat([fgsm(model, x[i : i + 1], labels[i : i + 1], mean=MEAN, std=STD) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fgsm(model, x, labels, mean=MEAN, std=STD), together)


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture_can_be_attacked(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    x = pixels(1, row.side, 0.1, 0.9)
    if row.name.startswith("igpt"):
        with pytest.raises(UserError, match="an attack by gradient is not available for igpt because no gradient"):
            fgsm(model, x, torch.tensor([2]), 0.01, mean=MEAN, std=STD)
        return
    moved = fgsm(model, x, torch.tensor([2]), 0.01, mean=MEAN, std=STD)
    assert ((moved - x).abs() - 0.01).abs().lt(1e-6).float().mean() > 0.5, "the gradient reaches the pixels"


def test_mistakes() -> None:
    x, labels = pixels(2), torch.arange(2)
    with pytest.raises(UserError, match="eps is -1"):
        fgsm(Linear(), x, labels, -1, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="before they are normalised"):
        pgd(Linear(), x - 1, labels, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="linf or l2"):
        pgd(Linear(), x, labels, mean=MEAN, std=STD, norm="l1")  # type: ignore[arg-type]
