"""Numbers from logits: scikit-learn's where it has them, closed forms where it has not, and what is undefined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from toy_data import seeded

from vitrail.training.metrics import Scored, calibration_error, macro_auroc, one_label, several_labels

N, K = 200, 4
CLASSES = ["a", "b", "c", "d"]


def scored(labels: torch.Tensor, logits: torch.Tensor | None = None) -> Scored:
    if logits is None:
        logits = torch.randn(len(labels), K, generator=seeded(3))
        if labels.ndim == 1:
            logits[torch.arange(len(labels)), labels] += 1
    return Scored(logits, labels, torch.arange(len(labels)) + 100, [])


def one(labels: torch.Tensor, logits: torch.Tensor | None = None) -> dict:
    return one_label(scored(labels, logits), CLASSES, str, binary=False)


LABELS = torch.randint(K, (N,), generator=seeded(0))
HOT = (torch.rand(N, K, generator=seeded(1)) < 0.3).float()


def test_one_label_is_scikit_learns():
    numbers, said = one(LABELS), scored(LABELS)
    predicted, probability = said.logits.argmax(1), said.logits.double().softmax(1)
    assert numbers["metric"] == "top1"
    assert numbers["top1"] == pytest.approx(reference.accuracy_score(LABELS, predicted))
    assert numbers["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(LABELS, predicted))
    assert numbers["auroc"] == pytest.approx(reference.roc_auc_score(LABELS, probability, multi_class="ovr"))
    assert numbers["loss"] == pytest.approx(reference.log_loss(LABELS, probability), rel=1e-5)
    assert 0 < numbers["calibration_error"] < 1


def test_classes_without_images():
    labels = LABELS % 3  # no d
    numbers, said = one(labels), scored(labels)
    recalls = [float((said.logits.argmax(1)[labels == k] == k).double().mean()) for k in range(3)]
    assert numbers["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert 0.5 < numbers["auroc"] < 1
    assert one(torch.zeros(3, dtype=torch.long))["auroc"] is None, "nothing to tell it from"
    assert json.dumps(numbers, allow_nan=False)


def test_the_loss_of_bce_is_summed_over_classes():
    labels = torch.tensor([1, 3])
    numbers = one_label(scored(labels, torch.zeros(2, K)), CLASSES, str, binary=True)
    assert numbers["loss"] == pytest.approx(K * math.log(2))


def test_auroc_is_the_share_of_pairs_in_order():
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    # of the four pairs (image of class 0, image of class 1), one is the wrong way round
    assert macro_auroc(probability, np.array([0, 0, 1, 1])) == pytest.approx(3 / 4)


# ------------------------------------------------------------------ calibration


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([0.75] * 4, [1, 1, 1, 0], 0.0),  # a constant, right as often as it says
        ([0.9] * 10, [1, 0] * 5, 0.4),
        ([1.0] * 4, [1, 1, 1, 1], 0.0),
        ([0.52, 0.98, 0.98, 0.52], [1, 0, 1, 0], (2 * 0.02 + 2 * 0.48) / 4),
        ([0.61, 0.65], [1, 0], 0.13),  # the same of 15 bins, (0.6, 0.667]: |1 / 2 - 0.63|
    ],
)
def test_calibration_error_by_hand(confidence, right, expected):
    assert calibration_error(torch.tensor(confidence), torch.tensor(right)) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_calibration_error_by_the_definition(seed, bins):
    confidence = torch.rand(50, generator=seeded(seed), dtype=torch.float64)
    right = torch.rand(50, generator=seeded(seed + 1)) < 0.6
    expected = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gap = right[inside].double().mean() - confidence[inside].mean()
            expected += float(inside.double().mean() * gap.abs())
    assert calibration_error(confidence, right, bins) == pytest.approx(expected)


# ------------------------------------------------------------------ several labels


def test_several_labels_are_scikit_learns():
    numbers, said = several_labels(scored(HOT), CLASSES, str), scored(HOT)
    yes = said.logits >= 0
    assert numbers["metric"] == "map"
    assert numbers["map"] == pytest.approx(reference.average_precision_score(HOT, said.logits.sigmoid()))
    assert numbers["macro_f1"] == pytest.approx(reference.f1_score(HOT, yes, average="macro"))
    assert numbers["micro_f1"] == pytest.approx(reference.f1_score(HOT, yes, average="micro"))
    assert numbers["loss"] == pytest.approx(K * reference.log_loss(HOT.flatten(), said.logits.sigmoid().flatten()))
    assert [row["n"] for row in numbers["per_class"]] == HOT.sum(0).tolist()


def test_average_precision_by_hand():
    logits = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    hot = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    assert scored(hot, logits).mean_average_precision() == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_class_that_no_image_has_is_left_out():
    hot = HOT.clone()
    hot[:, 3] = 0
    numbers = several_labels(scored(hot), CLASSES, str)
    known = [row["average_precision"] for row in numbers["per_class"][:3]]
    assert numbers["per_class"][3]["average_precision"] is None
    assert numbers["map"] == pytest.approx(sum(known) / 3)
    assert numbers["macro_f1"] == pytest.approx(sum(row["f1"] for row in numbers["per_class"][:3]) / 3)
    assert json.dumps(numbers, allow_nan=False)


def test_the_costliest_mistakes_come_first():
    logits = torch.tensor([[9.0, -9, -9, -9], [-9, 9, 9, -9], [1, -1, -9, -9]])
    hot = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    found = several_labels(scored(hot, logits), CLASSES, str)["mistakes"]
    assert [(m["index"], m["true"], m["predicted"]) for m in found] == [(101, ["a"], ["b", "c"]), (102, ["b"], ["a"])]
    assert found[0]["loss"] == pytest.approx(27, rel=1e-3)


def test_the_most_confident_mistakes_come_first():
    logits = torch.tensor([[5.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 8, 0]])
    found = one(torch.tensor([1, 1, 3]), logits)["mistakes"]
    assert [(m["file"], m["true"], m["predicted"]) for m in found] == [("102", "d", "c"), ("100", "b", "a")]
