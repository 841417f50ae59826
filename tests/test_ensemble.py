"""Votes of several models: the formulas in closed form, then runs that really vote."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import vitrail
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import tiny

from vitrail.comparison.figures import wilson
from vitrail.errors import UserError
from vitrail.run import load
from vitrail.training import loop
from vitrail.training.ensemble import (
    ballots,
    ensemble,
    forward_selection,
    log_odds,
    member_weights,
    temperature,
    views,
)
from vitrail.training.features import divided, source_of

SEEDS = st.integers(0, 2**20)


def voters(accuracies: list[float], classes: int, images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """First choices (M, N) of voters that err independently and evenly over the other classes, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    wrong = (labels + rng.integers(1, classes, size=(len(accuracies), images))) % classes
    right = rng.random((len(accuracies), images)) < np.array(accuracies)[:, None]
    return torch.tensor(np.where(right, labels, wrong)), torch.tensor(labels)


def winners(cast: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("m,mnk->nk", weights, cast).argmax(dim=1)


def logits_of(seed: int, members: int = 3, images: int = 40, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(members, images, classes, generator=generator, dtype=torch.float64)
    return noise + F.one_hot(labels, classes), labels


# ---------------------------------------------------------------------- weights


def test_log_odds_decide_as_the_posterior_does() -> None:
    """Every combination of votes of four voters among three classes, against Bayes' rule written out."""
    accuracies, classes = [0.9, 0.75, 0.6, 0.4], 3
    weights = log_odds(torch.tensor(accuracies, dtype=torch.float64), classes, margin=1e-9)
    for choices in itertools.product(range(classes), repeat=4):
        posterior = [
            np.prod(
                [a if choice == k else (1 - a) / (classes - 1) for a, choice in zip(accuracies, choices, strict=True)]
            )
            for k in range(classes)
        ]
        scores = [
            sum(float(w) for w, choice in zip(weights, choices, strict=True) if choice == k) for k in range(classes)
        ]
        assert posterior[int(np.argmax(scores))] == pytest.approx(max(posterior))


def test_log_odds_beat_the_other_weights_for_independent_voters() -> None:
    accuracies = [0.95, 0.6, 0.6, 0.6, 0.6]
    (known, known_labels), (asked, labels) = (voters(accuracies, 4, 20_000, seed) for seed in (0, 1))
    scores = {}
    for kind in ("uniform", "accuracy", "log-odds"):
        weights = member_weights(F.one_hot(known, 4).double(), known_labels, kind)  # type: ignore[arg-type]
        scores[kind] = float((winners(F.one_hot(asked, 4).double(), weights) == labels).double().mean())
    assert scores["log-odds"] > scores["accuracy"] + 0.003 > scores["uniform"]
    assert scores["log-odds"] > 0.955, "better than the best voter"


def test_weights_in_closed_form() -> None:
    labels = torch.zeros(10, dtype=torch.long)
    choices = torch.tensor([[0] * 8 + [1] * 2, [0] * 6 + [2] * 4, [0] * 10, [1] * 10])
    cast = F.one_hot(choices, 3).double()
    assert member_weights(cast, labels, "uniform").tolist() == [0.25] * 4
    assert member_weights(cast, labels, "accuracy").tolist() == pytest.approx([8 / 24, 6 / 24, 10 / 24, 0])
    odds = member_weights(cast, labels, "log-odds")
    assert float(odds[0] / odds[1]) == pytest.approx(np.log(0.8 * 2 / 0.2) / np.log(0.6 * 2 / 0.4))
    assert float(odds[2] / odds[1]) == pytest.approx(np.log(0.95 * 2 / 0.05) / np.log(0.6 * 2 / 0.4))
    assert 0 < odds[3] < odds[1] * 1e-6, "below chance"
    assert torch.isfinite(member_weights(cast[3:], labels, "accuracy")).all(), "nobody is ever right"


@given(SEEDS, st.sampled_from(["soft", "hard"]), st.sampled_from(["uniform", "accuracy", "log-odds", "greedy"]))
@settings(max_examples=40, deadline=None)
def test_the_order_of_members_and_the_names_of_classes_do_not_matter(seed: int, vote: Any, kind: Any) -> None:
    logits, labels = logits_of(seed)
    cast = ballots(logits, vote)
    weights = member_weights(cast, labels, kind)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights >= 0).all()
    order = torch.tensor([2, 0, 1])
    if kind != "greedy" or vote == "soft":  # hard ballots make equals, of which the first is taken
        assert torch.allclose(member_weights(cast[order], labels, kind), weights[order])
    names = torch.tensor([3, 1, 0, 2])  # column j of the renamed ballots is class names[j]
    renamed = ballots(logits[..., names], vote)
    assert torch.allclose(member_weights(renamed, names.argsort()[labels], kind), weights) or vote == "hard"
    if vote == "soft":
        assert torch.equal(names[winners(renamed, weights)], winners(cast, weights))


@given(SEEDS, st.sampled_from(["soft", "hard"]), st.floats(0.1, 9))
@settings(max_examples=30, deadline=None)
def test_copies_agree_and_the_scale_of_weights_is_free(seed: int, vote: Any, factor: float) -> None:
    logits, _ = logits_of(seed)
    same = ballots(logits[:1].expand(4, -1, -1), vote)
    assert torch.equal(winners(same, torch.tensor([0.1, 0.2, 0.3, 0.4]).double()), logits[0].argmax(dim=1))
    cast, weights = ballots(logits, vote), torch.tensor([0.5, 0.3, 0.25], dtype=torch.float64)
    assert torch.equal(winners(cast, weights), winners(cast, factor * weights))


@given(SEEDS, st.sampled_from(["soft", "hard"]))
@settings(max_examples=20, deadline=None)
def test_forward_selection_is_never_below_the_best_member(seed: int, vote: Any) -> None:
    logits, labels = logits_of(seed)
    cast = ballots(logits, vote)
    taken = forward_selection(cast, labels)
    right = (winners(cast, taken) == labels).double().mean()
    assert right >= (cast.argmax(dim=2) == labels).double().mean(dim=1).max()


def test_forward_selection_leaves_out_who_harms() -> None:
    """One and two are sure of one half of the images each and unsure of the other; three is sure and wrong."""
    labels = torch.zeros(40, dtype=torch.long)
    cast = torch.zeros(3, 40, 2, dtype=torch.float64)
    cast[0, :20, 0], cast[0, 20:, 0] = 0.9, 0.4
    cast[1, :20, 0], cast[1, 20:, 0] = 0.4, 0.9
    cast[2, :, 0] = 0.1
    cast[..., 1] = 1 - cast[..., 0]
    taken = forward_selection(cast, labels)
    assert taken.tolist() == [1, 1, 0]
    assert (winners(cast, taken) == labels).all()


# ---------------------------------------------------------------------- temperature


def test_temperature_finds_the_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)
    assert temperature(logits, labels) == pytest.approx(1, rel=0.03)
    assert temperature(0.5 * logits, labels) == pytest.approx(temperature(logits, labels) / 2, rel=1e-4)


def test_temperature_is_the_minimum_and_is_bounded() -> None:
    logits, labels = logits_of(1, images=300)
    found = temperature(logits[0], labels)
    losses = [float(F.cross_entropy(logits[0] / t, labels)) for t in (found, 0.98 * found, 1.02 * found)]
    assert losses[0] == min(losses)
    right = torch.eye(4, dtype=torch.float64)
    assert temperature(right, torch.arange(4)) == 0.05, "colder is always better"
    assert temperature(right, torch.arange(4).roll(1)) == 20, "hotter is always better"


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on digits that differ in their seed."""
    root = tmp_path_factory.mktemp("members")
    return [loop.fit(tiny(seed=seed, data__limit=160), root / str(seed)) for seed in (0, 1)]


@pytest.mark.parametrize("vote", ["soft", "hard"])
@pytest.mark.parametrize("weights", ["uniform", "accuracy", "log-odds", "greedy"])
def test_the_score_is_that_of_the_formula(runs: list[Path], vote: Any, weights: Any) -> None:
    result = ensemble([*runs, runs[0]], vote=vote, weights=weights)
    assert (result["n_val"], result["n"]) == (80, 80)
    assert result["notes"] == ["no val split: weights from one half of test, score on the other"]
    source = source_of(load(runs[0]), None)
    halves = divided(source, "test", share=0.5)
    assert not {halves[0].name(i) for i in range(80)} & {halves[1].name(i) for i in range(80)}
    members = [load(run) for run in (*runs, runs[0])]
    seen = [views(members, replace(source, splits={"half": half}), "half", None) for half in halves]
    shares = torch.tensor([member["weight"] for member in result["members"]], dtype=torch.float64)
    assert torch.allclose(shares, member_weights(ballots(seen[0].logits, vote), seen[0].labels, weights))
    right = winners(ballots(seen[1].logits, vote), shares) == seen[1].labels
    assert result["top1"] == pytest.approx(float(right.double().mean()))
    assert result["interval"] == pytest.approx(wilson(result["top1"], 80), abs=1e-4)
    best = max(member["top1"] for member in result["members"])
    assert result["top1"] - best == pytest.approx((result["gained"] - result["lost"]) / 80)
    assert result["beats_best"] == (result["top1"] > best)


def test_calibration_keeps_each_member_s_answers(runs: list[Path]) -> None:
    plain, calibrated = (ensemble(runs, calibrate=calibrate) for calibrate in (False, True))
    assert [member["temperature"] for member in plain["members"]] == [1, 1]
    assert all(member["temperature"] != 1 for member in calibrated["members"])
    keys = ("top1", "val_top1")
    assert [[m[k] for k in keys] for m in plain["members"]] == [[m[k] for k in keys] for m in calibrated["members"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes, no split of its own."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for k in range(40):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{k}.png")
    return root


def test_no_image_is_scored_that_a_member_was_trained_on(folder: Path, tmp_path: Path) -> None:
    """Runs of other seeds hold out others: the fewer images that none has seen are used, and that is said."""
    members = [
        loop.fit(tiny(seed=seed, data__source=str(folder), data__val_fraction=0.5), tmp_path / f"r{seed}")
        for seed in (0, 1)
    ]
    result = ensemble(members)
    held = [source_of(load(run), None).splits["val"] for run in members]
    unseen = set.intersection(*({split.name(i) for i in range(len(split))} for split in held))
    assert result["n"] + result["n_val"] == len(unseen) < 40
    assert result["notes"][0] == f"{40 - len(unseen)} of 40 val images left out: a member was trained on them"
    assert ensemble([members[0], members[0]])["n"] == 20, "one seed: all that are held out"
    complement = [
        loop.fit(tiny(seed=0, data__source=str(folder), data__val_fraction=share), tmp_path / f"s{share}")
        for share in (0.05, 0.95)
    ]
    assert ensemble(complement)["n"] == 2


def test_mistakes(runs: list[Path], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two runs"):
        ensemble(runs[:1])
    with pytest.raises(UserError, match=r"has other classes \(10: 0, 1, 2, …\) than .* \(2: a, b\)"):
        ensemble(runs, str(folder))
    with pytest.raises(UserError, match="1000"):
        ensemble([runs[0], "vit_pico_patch2_8"])
    pretraining = loop.fit(tiny(task="masked_patches", augment__mixup=0.0, augment__cutmix=0.0), tmp_path / "pre")
    with pytest.raises(UserError, match="trained for masked_patches"):
        ensemble([runs[0], pretraining])


def test_command(runs: list[Path]) -> None:
    answer = vitrail("ensemble", *runs, "--weights", "log-odds", "--calibrate", "--json")
    assert answer.code == 0, answer.err
    result = answer.json()
    assert result == ensemble(runs, weights="log-odds", calibrate=True)
    said = vitrail("ensemble", *runs, "--data", "digits", "--weights", "log-odds", "--calibrate")
    assert all(str(run) in said.out for run in runs)
    assert f"{result['top1']:.2%} of {result['n']} images" in said.out
    assert f"best member, {result['best']}" in said.out
    assert "no val split" in said.err
    assert vitrail("ensemble", runs[0]).code == 1
