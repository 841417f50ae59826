"""Losses of labels: equal to timm's and to formulas written out; weights by frequency and by name; first losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from toy_data import recipe, seeded, source, three, whole

from vitrail.errors import UserError
from vitrail.run import build
from vitrail.training.tasks.classify import Classify
from vitrail.training.tasks.losses import binary_cross_entropy, class_weights, soft_cross_entropy

B, K = 6, 5
LOGITS = 3 * torch.randn(B, K, generator=seeded(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 1])
TARGETS = torch.randn(B, K, generator=seeded(1), dtype=torch.float64).softmax(dim=1)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.0], dtype=torch.float64)


def smoothed(smoothing: float) -> torch.Tensor:
    return F.one_hot(LABELS, K) * (1 - smoothing) + smoothing / K


def test_cross_entropy_is_timms():
    assert soft_cross_entropy(LOGITS, TARGETS).item() == pytest.approx(SoftTargetCrossEntropy()(LOGITS, TARGETS).item())
    expected = LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS)
    assert soft_cross_entropy(LOGITS, smoothed(0.1)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms_times_the_classes(smoothing):
    loss = binary_cross_entropy(LOGITS, smoothed(smoothing)).item()
    assert loss == pytest.approx(K * BinaryCrossEntropy(smoothing)(LOGITS, LABELS).item())
    assert loss == pytest.approx(BinaryCrossEntropy(smoothing, sum_classes=True)(LOGITS, LABELS).item())


def test_weights_multiply_the_share_of_the_target():
    logs = LOGITS.log_softmax(dim=1)
    expected = sum(-WEIGHTS[k] * TARGETS[i, k] * logs[i, k] for i in range(B) for k in range(K)) / B
    assert soft_cross_entropy(LOGITS, TARGETS, WEIGHTS).item() == pytest.approx(expected.item())
    hard = F.cross_entropy(LOGITS, LABELS, weight=WEIGHTS, reduction="sum") / B
    assert soft_cross_entropy(LOGITS, smoothed(0), WEIGHTS).item() == pytest.approx(hard.item())


def test_weights_multiply_the_yes_of_a_class():
    yes, no = LOGITS.sigmoid().log(), (-LOGITS).sigmoid().log()
    expected = -(WEIGHTS * TARGETS * yes + (1 - TARGETS) * no).sum() / B
    assert binary_cross_entropy(LOGITS, TARGETS, WEIGHTS).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_cross_entropy])
@given(cut=st.integers(1, B - 1))
def test_parts_of_a_batch_add_up(loss, cut):
    parts = sum(
        loss(LOGITS[rows], TARGETS[rows], WEIGHTS) * len(LOGITS[rows]) / B for rows in (slice(cut), slice(cut, B))
    )
    assert parts.item() == pytest.approx(loss(LOGITS, TARGETS, WEIGHTS).item())


# ------------------------------------------------------------------ class weights


def test_no_weights():
    assert class_weights("none", three()) is None


def test_automatic_weights_are_scikit_learns():
    labels = [0] * 7 + [1] * 2 + [2]
    weights = class_weights("auto", source(labels, ["a", "b", "c"]))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights == pytest.approx(torch.tensor(expected), rel=1e-6)
    assert weights[labels].mean().item() == pytest.approx(1), "the loss keeps its scale"


def test_automatic_weights_of_several_labels():
    labels = [[0, 1], [0], [0], []]
    weights = class_weights("auto", source(labels, ["a", "b", "c"], several=True))
    assert weights.tolist() == pytest.approx([2 / 3, 2.0, 1.0])  # no image has c


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=2", [2, 1, 1]),
        ("b b=0.5,a=3", [3, 0.5, 1]),
        ("b b=0.5, c, see=4", [1, 0.5, 4]),
        ("a=0,c, see=1e1", [0, 1, 10]),
    ],
)
def test_weights_by_name(text, expected):
    assert class_weights(text, source([0, 1, 2], ["a", "b b", "c, see"])).tolist() == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("catt=2", r"--class-weights names 'catt', which is no class of toy; did you mean 'cat'\?"),
        ("cat:2", "--class-weights is 'cat:2'; write none, auto, or each class once"),
        ("cat=2,dog", "write none, auto"),
        ("cat=2,cat=3", "each class once"),
        ("cat=-1", "write none, auto"),
        ("cat=nan", "write none, auto"),
        ("cat=", "write none, auto"),
        ("", "write none, auto"),
        ("cat=0,dog=0", "every class weighs 0"),
    ],
)
def test_wrong_weights_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        class_weights(text, source([0, 1], ["cat", "dog"]))


# ------------------------------------------------------------------ how a run starts


@pytest.mark.parametrize("classes", [3, 10])
def test_a_zero_head_starts_at_ln_k(classes):
    data = source([i % classes for i in range(12)], [f"{k}" for k in range(classes)])
    chosen = recipe(head_bias=0.0)
    task = Classify(chosen, data)
    loss = task.loss(build(chosen, classes), *task.prepare(whole(data, chosen)))
    assert loss.item() == pytest.approx(math.log(classes), abs=1e-6)


def test_a_biased_head_starts_small_with_bce():
    chosen = recipe(head_bias=-6.9, loss="bce")
    task = Classify(chosen, three())
    loss = task.loss(build(chosen, 3), *task.prepare(whole(three(), chosen)))
    assert loss.item() == pytest.approx(math.log1p(math.exp(6.9)) + 2 * math.log1p(math.exp(-6.9)), abs=1e-5)
