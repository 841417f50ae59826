"""The rules of training that need no run: which weights decay, how fast a layer learns, and what numbers may be."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from timm.optim.adafactor_bv import AdafactorBigVision
from tiny_runs import tiny
from torch import nn

from vitrail.errors import UserError
from vitrail.models import create_model, summaries
from vitrail.recipe import Optim, Schedule
from vitrail.recipes import find_recipe, list_recipes
from vitrail.training.limits import RULES, check_numbers
from vitrail.training.optim import layer_numbers, optimizer, parameter_groups
from vitrail.training.schedule import learning_rate


def meta(name: str) -> Any:
    with torch.device("meta"):
        return create_model(name)


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Parameter -> (weight decay, share of the learning rate)."""
    found = {
        id(parameter): (group["weight_decay"], group["lr_scale"]) for group in groups for parameter in group["params"]
    }
    return {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}


# ---------------------------------------------------------------------- decay


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("deit_tiny_distilled_patch16_224", {"cls_token", "dist_token", "pos_embed"}),
        ("vit_base_patch16_siglip_224", {"pos_embed", "attn_pool.latent"}),
        ("resnet18", set()),
    ],
)
def test_norms_biases_tokens_and_positions_do_not_decay(name: str, tokens: set[str]) -> None:
    model = meta(name)
    decayed, kept = parameter_groups(model, Optim(weight_decay=0.3))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert decayed["lr_scale"] == kept["lr_scale"] == 1.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    together = [id(parameter) for parameter in decayed["params"] + kept["params"]]
    assert sorted(together) == sorted(names), "every parameter once"
    spared = {names[id(parameter)] for parameter in kept["params"]}
    assert tokens <= spared
    assert all(name.endswith(".bias") or "norm" in name or name in tokens or "bn" in name or "downsample.1" in name
               for name in spared)  # fmt: skip
    assert not any(name.endswith("bias") or "norm" in name for name in set(names.values()) - spared)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])


def test_frozen_parameters_are_not_optimised() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, Optim(weight_decay=0.1))
    assert [parameter.shape for group in groups for parameter in group["params"]] == [(2, 3), (2,)]


def test_the_last_layers_have_rates_of_their_own() -> None:
    """Scaling ViT decays the head's kernel a hundred times as much, and its bias not at all."""
    model = meta("deit_tiny_distilled_patch16_224")
    groups = parameter_groups(model, Optim(weight_decay=0.03, head_lr=10.0, head_weight_decay=3.0))
    found = by_name(model, groups)
    assert found.pop("head.weight") == found.pop("head_dist.weight") == (3.0, 10.0)
    assert found.pop("head.bias") == found.pop("head_dist.bias") == (0.0, 10.0)
    assert set(found.values()) == {(0.03, 1.0), (0.0, 1.0)}
    assert len(groups) == 4


def test_what_holds_a_model_hides_nothing_of_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = meta("vit_pico_patch2_8")
            self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.colours = nn.Linear(8, 512)

        def no_weight_decay(self) -> set[str]:
            return {"mask_token"}

    optim = Optim(weight_decay=0.1, layer_decay=0.5, head_lr=3.0, head_weight_decay=2.0)
    holder = Holder()
    found = by_name(holder, parameter_groups(holder, optim))
    alone = by_name(holder.model, parameter_groups(holder.model, optim))
    assert {name.removeprefix("model."): pair for name, pair in found.items() if name.startswith("model.")} == alone
    assert alone["cls_token"] == (0.0, 0.5 ** (len(holder.model.blocks) + 1))
    assert (found["mask_token"], found["colours.weight"]) == ((0.0, 1.0), (0.1, 1.0))


# ---------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_base_patch16_siglip_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "mixer_b16_224",
        "convit_tiny",
        "resmlp_12_224",
        "resnet18",
        "resnet50",
    ],
)
def test_layer_decay_is_timms(name: str) -> None:
    """Name by name, the final norm with the last block. timm lists other tokens: only rates are compared."""
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=1000)
    ours = meta(name)
    found = by_name(ours, parameter_groups(ours, Optim(layer_decay=0.75)))
    expected = by_name(theirs, param_groups_layer_decay(theirs, 0.05, layer_decay=0.75))
    assert found.keys() == expected.keys()
    assert {name: pair[1] for name, pair in found.items()} == pytest.approx(
        {name: pair[1] for name, pair in expected.items()}
    )


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0"])
def test_layer_decay_is_timms_where_names_differ(name: str) -> None:
    """torchvision's names: as many weights of each shape learn at each rate."""
    with torch.device("meta"):
        theirs = timm.create_model(name)
    ours = meta(name)

    def rates(groups: list[dict[str, Any]]) -> Counter[tuple[int, float]]:
        return Counter((p.numel(), round(group["lr_scale"], 12)) for group in groups for p in group["params"])

    assert rates(parameter_groups(ours, Optim(layer_decay=0.75))) == rates(
        param_groups_layer_decay(theirs, 0.05, layer_decay=0.75)
    )


def test_layer_decay_of_a_small_vit_by_hand() -> None:
    """Depth 2 and 0.75: the stem 0.4219, the blocks 0.5625 and 0.75 with the final norm, the head 1."""
    model: Any = create_model("vit_pico_patch2_8", depth=2)
    groups = parameter_groups(model, Optim(layer_decay=0.75))
    found = {name: pair[1] for name, pair in by_name(model, groups).items()}
    assert found["cls_token"] == found["pos_embed"] == found["patch_embed.proj.weight"] == pytest.approx(0.75**3)
    assert found["blocks.0.norm1.weight"] == pytest.approx(0.75**2)
    assert found["blocks.1.mlp.fc1.weight"] == found["norm.weight"] == 0.75
    assert found["head.weight"] == found["head.bias"] == 1.0
    pairs = [(group["lr_scale"], group["weight_decay"]) for group in groups]
    assert len(set(pairs)) == len(pairs) == 8, "equal groups are one"
    assert pairs == sorted(pairs, key=lambda pair: (pair[0], -pair[1])), "in an order of their own"


FAMILIES = {row["family"]: row["name"] for row in reversed(summaries())}  # the first name of each


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_has_layers(name: str) -> None:
    """The first weights are the stem's, the last layer is the last, and between them rates rise from layer to layer."""
    model = meta(name)
    numbers = layer_numbers(model)
    assert numbers.keys() == dict(model.named_parameters()).keys()
    assert set(numbers.values()) == set(range(max(numbers.values()) + 1)), "no number is left out"
    assert len(set(numbers.values())) >= 6
    heads = {id(parameter) for head in model.heads() for parameter in head.parameters()}
    for key, parameter in model.named_parameters():
        assert id(parameter) not in heads or numbers[key] == max(numbers.values()), key
    biggest = Counter(numbers.values()).most_common(1)[0]
    assert biggest[1] < 0.5 * len(numbers), f"most weights are in layer {biggest[0]}"


# ---------------------------------------------------------------------- optimisers


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("momentum", torch.optim.SGD)]
)
def test_optimizer_is_the_recipes(name: Any, kind: type) -> None:
    made = optimizer(nn.Linear(2, 2), Optim(name=name, lr=0.25, weight_decay=0.5, betas=(0.8, 0.9)))
    assert type(made) is kind
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0]
    assert all(group["lr"] == 0.25 for group in made.param_groups)
    first = made.param_groups[0]
    assert name != "adamw" or first["betas"] == (0.8, 0.9)
    assert name == "adamw" or (first["momentum"], first["nesterov"]) == (0.9, name == "sgd")


def same_steps(ours: nn.Module, theirs: nn.Module, first: Any, second: Any, steps: int, seed: int = 0) -> None:
    """The same random gradients for both, and a learning rate that changes."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator) * 10.0 ** (step % 4 - 3)
            b.grad = a.grad.clone()
        for group in first.param_groups + second.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        first.step()
        second.step()


def network() -> nn.Module:
    """Factored, whole (a short side), with four dimensions, and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 40, 33), nn.Linear(40, 64), nn.Linear(64, 8), nn.Linear(32, 32))


def test_adafactor_is_big_visions() -> None:
    ours, theirs = network(), network()
    first = optimizer(ours, Optim(name="adafactor", weight_decay=0.1))
    groups = parameter_groups(theirs, Optim(weight_decay=0.1))
    second = AdafactorBigVision(groups, min_dim_size_to_factor=32, beta2_cap=0.999, momentum=0.9)
    same_steps(ours, theirs, first, second, 12)
    start = list(network().parameters())
    for number, (a, b) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-7)
        assert not torch.equal(a, start[number])
    kernel, matrix, short = (first.state[layer.weight] for layer in list(ours)[:3])
    assert (kernel["row"].shape, kernel["column"].shape) == ((1, 3, 33, 33), (40, 3, 33, 1))
    assert matrix["row"].numel() + matrix["column"].numel() == 40 + 64
    assert short["square"].shape == (8, 64)
    assert matrix["momentum"].dtype == torch.bfloat16


def test_adafactor_forgets_as_the_paper_says() -> None:
    """beta2 = min(0.999, 1 - t^-0.8): 0 at first, so the first direction is the sign of the gradient of a vector."""
    weights = nn.Parameter(torch.zeros(4))
    made = optimizer(nn.ParameterDict({"w": weights}), Optim(name="adafactor", lr=1.0, weight_decay=0.0))
    weights.grad = torch.tensor([1.0, -2.0, 3e-4, -5e5])
    made.step()
    torch.testing.assert_close(weights.detach(), torch.tensor([-0.1, 0.1, -0.1, 0.1]), rtol=4e-3, atol=0)
    weights.grad = torch.full((4,), 2.0)
    made.step()
    beta2 = 1 - 2**-0.8
    expected = beta2 * torch.tensor([1.0, 4.0, 9e-8, 25e10]) + (1 - beta2) * 4
    torch.testing.assert_close(made.state[weights]["square"], expected)


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "adafactor"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: Any) -> None:
    model, twin, optim = network(), network(), Optim(name=name, weight_decay=0.1)
    first = optimizer(model, optim)
    same_steps(model, twin, first, optimizer(twin, optim), 3)
    later = copy.deepcopy(model)
    second = optimizer(later, optim)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    same_steps(model, later, first, second, 4, seed=1)
    for a, b in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(a, b)
    states = [value for state in second.state.values() for value in state.values() if torch.is_tensor(value)]
    assert states
    assert (torch.bfloat16 in {value.dtype for value in states}) == (name == "adafactor")


# ---------------------------------------------------------------------- limits

ALLOWED = {"optim.rho": 0, "optim.layer_decay": 1, "schedule.cooldown_epochs": 0, "dropout": 0, "head_bias": -6.9}
REFUSED = {
    "augment.mix_prob": 1.01,
    "optim.layer_decay": 0,
    "optim.head_lr": 0,
    "schedule.timescale_epochs": 0,
    "distill.alpha": 1.5,
    "distill.tau": 0,
    "masked.share": 0,
    "data.repeats": 0,
    "dropout": 1,
    "drop_path": 1,
    "head_bias": math.inf,
}


@pytest.mark.parametrize("field", RULES)
def test_a_number_that_means_nothing_is_refused(field: str) -> None:
    check_numbers(tiny())
    path = field.replace(".", "__")
    if field in ALLOWED:
        check_numbers(tiny(**{path: ALLOWED[field]}))
    wrong: list[Any] = [math.nan, REFUSED.get(field, -1)]
    if isinstance(attrgetter(field)(tiny()), tuple):
        wrong = [(math.nan, 0.9), (0.9, 1.0)]
    for number in wrong:
        with pytest.raises(UserError, match=rf"^--{field.replace('_', '-')} is .*; it must be "):
            check_numbers(tiny(**{path: number}))


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(epochs=3, frozen_epochs=4), "frozen-epochs is 4, more than the run's 3 epochs"),
        (Schedule(epochs=3, cooldown_epochs=1), "cooldown-epochs is 1, and cosine falls by itself"),
        (
            Schedule(name="rsqrt", epochs=3, cooldown_epochs=2.5, frozen_epochs=1),
            "cooldown-epochs is 2.5, more than the 2",
        ),
    ],
)
def test_epochs_that_do_not_fit_the_run_are_refused(schedule: Schedule, said: str) -> None:
    with pytest.raises(UserError, match=f"^--schedule.{said}"):
        check_numbers(replace(tiny(), schedule=schedule))


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(epochs=3, frozen_epochs=3),
        Schedule(name="constant", epochs=3, cooldown_epochs=3, warmup_epochs=0),
        Schedule(epochs=1, warmup_epochs=5),
    ],
)
def test_epochs_that_just_fit_are_taken_and_learn(schedule: Schedule) -> None:
    check_numbers(replace(tiny(), schedule=schedule))
    rates = [learning_rate(step, 4, 1.0, schedule) for step in range(4 * schedule.epochs)]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize("name", list_recipes())
def test_published_recipes_have_numbers_that_mean_something(name: str) -> None:
    recipe = find_recipe(name)
    check_numbers(recipe)
    with pytest.raises(UserError, match=r"^--optim\.lr is nan"):
        check_numbers(replace(recipe, optim=replace(recipe.optim, lr=math.nan)))
