"""Probes of frozen features: each against its closed form or scikit-learn, then through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import tiny_run, vitrail
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny_runs import tiny

from vitrail.data.sources import Source, open_source
from vitrail.errors import UserError
from vitrail.run import load
from vitrail.training import loop
from vitrail.training import probe as probes
from vitrail.training.features import Features, divided, features, source_of
from vitrail.training.probe import draw, least_squares, linear, probe, votes


def made(n: int, dim: int, classes: int, seed: int = 0, signal: float = 1.0) -> Features:
    """Normal features, each class around a point of its own, of very unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    x = signal * centres[labels] + torch.randn(n, dim, generator=generator)
    return Features(x * torch.logspace(-2, 2, dim), labels, [])


def source(classes: int) -> Source:
    return Source("made", [f"kind {k}" for k in range(classes)], {})


# ---------------------------------------------------------------------- few shots


@pytest.mark.parametrize(("n", "dim"), [(12, 40), (90, 20), (31, 30)])
def test_least_squares_is_ridge_regression_both_ways(n: int, dim: int) -> None:
    train, asked = made(n, dim, 3), made(25, dim, 3, seed=1)
    x, new = train.x.double(), asked.x.double()
    primal, dual = (least_squares(x, train.labels, 3, dual=dual).weights for dual in (False, True))
    assert torch.allclose(primal, dual, rtol=0, atol=1e-12)
    chosen = least_squares(x, train.labels, 3)
    assert torch.equal(chosen.weights, dual if n < dim + 1 else primal)

    def ready(z: Any) -> Any:
        whitened = (z - x.numpy().mean(axis=0)) / (x.numpy().std(axis=0) + 1e-5)
        return np.concatenate([whitened, np.full((len(z), 1), 100.0)], axis=1)

    # the constant feature is a column like the others, so that the bias is penalised as it is there
    ridge = Ridge(alpha=1024.0, fit_intercept=False).fit(ready(x.numpy()), np.eye(3)[train.labels] * 2 - 1)
    assert np.allclose(chosen(new).numpy(), ridge.predict(ready(new.numpy())), rtol=0, atol=1e-10)


def test_a_constant_feature_changes_nothing() -> None:
    train = made(30, 6, 3).x.double()
    labels = torch.arange(30) % 3
    wider = torch.cat([train, torch.full((30, 1), 7.0)], dim=1)
    assert torch.allclose(least_squares(train, labels, 3)(train), least_squares(wider, labels, 3)(wider), atol=1e-12)


def test_draws_are_even_and_nested() -> None:
    labels = np.array([0] * 7 + [1] * 3 + [2] * 12)
    few, more = (draw(labels, 3, shots, seed=5) for shots in (2, 5))
    assert np.bincount(labels[few]).tolist() == [2, 2, 2]
    assert np.bincount(labels[more]).tolist() == [5, 3, 5]
    assert set(few) < set(more)
    assert set(draw(labels, 3, 2, seed=6)) != set(few)


def test_fewshot_says_which_classes_have_fewer_images() -> None:
    train, held = made(44, 8, 2), made(60, 8, 2, seed=1)
    rows = probes.fewshot(Features(train.x[:32], train.labels[:32], []), held, source(2))["rows"]
    assert [row["shots"] for row in rows] == [1, 5, 10, 25]
    assert [row["n_train"] for row in rows] == [2, 10, 20, 32]
    assert [row["fewer"] for row in rows] == [[], [], [], ["kind 0", "kind 1"]]
    assert rows[3]["spread"] == 0, "all images there are, three times"
    assert rows[0]["spread"] == pytest.approx(np.std(rows[0]["seeds"], ddof=1))
    assert rows[3]["top1"] > 0.9


# ---------------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("most", [1, 5000, 2**24])
def test_votes_are_scikit_learn_s(most: int) -> None:
    train, asked = made(300, 12, 5, signal=0.4), made(100, 12, 5, seed=1, signal=0.4)
    ks = (1, 10, 20)
    plain, weighted = votes(train, asked.x, 5, ks, most)
    for k, one, other in zip(ks, plain, weighted, strict=True):
        for said, weights in ((one, "uniform"), (other, lambda distance: np.exp((1 - distance) / 0.07))):
            reference = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
            reference.fit(train.x.double().numpy(), train.labels.numpy())
            assert np.array_equal(said.numpy(), reference.predict(asked.x.double().numpy()))
    assert (plain[1] != weighted[1]).any(), "the weights do something"


def test_fewer_images_than_neighbours_all_vote() -> None:
    train = Features(torch.eye(3), torch.tensor([1, 1, 0]), [])
    plain, weighted = votes(train, torch.tensor([[0.0, 0.0, 1.0]]), 2, (1, 20))
    assert plain[:, 0].tolist() == [0, 1]
    assert weighted[:, 0].tolist() == [0, 0], "one like it outweighs two unlike it"


# ---------------------------------------------------------------------- linear


def test_linear_is_logistic_regression_on_standardised_features() -> None:
    fitted, chosen, held = (made(n, 10, 4, seed=k, signal=0.5) for k, n in enumerate((160, 40, 200)))
    result = linear(fitted, chosen, held)
    assert [row["l2"] for row in result["rows"]] == sorted((row["l2"] for row in result["rows"]), reverse=True)
    x, labels = np.concatenate([fitted.x, chosen.x]), np.concatenate([fitted.labels, chosen.labels])
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=1 / result["l2"], max_iter=1000).fit(scaler.transform(x), labels)
    expected = (reference.predict(scaler.transform(held.x)) == held.labels.numpy()).mean()
    assert result["top1"] == pytest.approx(expected, abs=0.006)
    assert result["converged"]
    best = max(row["chosen_top1"] for row in result["rows"])
    assert next(row["l2"] for row in result["rows"] if row["chosen_top1"] == best) == result["l2"]


def test_the_scored_images_decide_nothing() -> None:
    fitted, chosen, held = (made(n, 10, 4, seed=k, signal=0.5) for k, n in enumerate((160, 40, 200)))
    shuffled = Features(held.x, held.labels.flip(0), [])
    one, other = linear(fitted, chosen, held), linear(fitted, chosen, shuffled)
    assert one["top1"] != other["top1"]
    assert (one["rows"], one["l2"]) == (other["rows"], other["l2"])


# ---------------------------------------------------------------------- features


@pytest.mark.parametrize("name", ["vit_pico_patch2_8", "resnet18", "swin_tiny_patch4_window7_224", "gmlp_s16_224"])
def test_features_are_what_the_last_layer_reads(name: str) -> None:
    run = load(name)
    digits = open_source("digits")
    digits.splits["few"] = divided(digits, "test", share=3 / 360)[1]
    seen = features(run, digits, "few", batch_size=4)
    assert seen.x.shape == (len(digits.splits["few"]), run.model.num_features)
    assert seen.labels.tolist() == list(digits.splits["few"].labels)
    from vitrail.run import best_device, preprocessing

    images = torch.stack([preprocessing(run.recipe.data)(digits.splits["few"].read(i)) for i in range(len(seen.x))])
    model: Any = run.model
    with torch.no_grad():
        said = model(images.to(best_device())).cpu()
        head = model.get_classifier().cpu()
        assert torch.allclose(head(seen.x), said, atol=1e-4)
    assert not model.training
    assert not seen.x.requires_grad


def test_a_distilled_model_gives_the_mean_of_its_two_tokens() -> None:
    run = load("deit_tiny_distilled_patch16_224")
    digits = open_source("digits")
    digits.splits["few"] = divided(digits, "test", share=3 / 360)[1]
    assert features(run, digits, "few").x.shape == (10, 192)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of bright and dark pictures, no split, one file damaged."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (root / name).mkdir()
        for k in range(20):
            pixels = rng.integers(low, low + 100, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:02}.png")
    whole = (root / "dark" / "03.png").read_bytes()
    (root / "dark" / "03.png").write_bytes(whole[:50])
    return root


@pytest.mark.parametrize("method", ["linear", "fewshot", "knn"])
def test_a_damaged_image_is_named_and_left_out(folder: Path, method: Any) -> None:
    result = probe("vit_pico_patch2_8", str(folder), method=method)
    assert (result["split"], result["n"] + result["n_train"]) == ("val", 39)
    assert [Path(name).name for name in result["damaged"]] == ["03.png"]
    assert result["top1"] == 1.0, "dark from light"


# ---------------------------------------------------------------------- runs and the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("probe") / "run")


@pytest.mark.parametrize("method", ["linear", "fewshot", "knn"])
def test_command(method: str, run: Path) -> None:
    answer = vitrail("probe", run, "--method", method, "--json")
    assert answer.code == 0, answer.err
    result = answer.json()
    assert result == probe(run, method=method)  # type: ignore[arg-type]
    assert (result["n"], result["n_train"], result["dim"]) == (60, 60, 64)
    said = vitrail("probe", run, "--method", method)
    assert f"{result['top1']:.2%} of 60 test images of digits right" in said.out
    assert f"trained in {run}" in said.out


def test_other_classes_and_a_bare_name(run: Path, folder: Path) -> None:
    assert probe(run, str(folder), method="knn")["n"] == 8
    said = vitrail("probe", "vit_pico_patch2_8", folder, "--method", "fewshot")
    assert said.code == 0
    assert "2: dark, light" in said.out
    assert "random weights" in said.out
    assert "left out: " in said.err


def test_random_weights_on_all_digits() -> None:
    """Pixels of 8 x 8 go far through any weights; the penalty that random features want is a weak one."""
    result = probe("vit_pico_patch2_8", "digits")
    assert result["top1"] > 0.9
    assert result["l2"] < 100
    assert probe("vit_pico_patch2_8", "digits", method="knn")["rows"][0]["majority"] > 0.8


def test_a_run_that_predicted_patches(tmp_path: Path) -> None:
    recipe = tiny(task="masked_patches", augment__mixup=0.0, augment__cutmix=0.0)
    result = probe(loop.fit(recipe, tmp_path / "run"), method="knn")
    assert (result["dim"], result["n"], result["n_train"]) == (64, 96, 96)
    assert result["top1"] > 0.3


def test_mistakes(tmp_path: Path) -> None:
    assert "name the DATA" in vitrail("probe", "vit_pico_patch2_8").err
    table = tmp_path / "several.csv"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    table.write_text("path,cat,dog\na.png,1,1\na.png,0,1\na.png,1,0\na.png,1,0\n")
    with pytest.raises(UserError, match="several labels an image"):
        source_of(load("vit_pico_patch2_8"), str(table))
