"""How good a model's features are, measured without training the model: a small classifier on the frozen features.

linear    multinomial logistic regression, the usual linear probe
fewshot   least squares from 1, 5, 10, 25 images a class, in closed form, as in the papers on ViT
knn       the nearest training images vote, as in DINO
Whatever a probe has to choose, it chooses on a part of the training images; the scored ones are only scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources import Source
from vitrail.run import Run, load
from vitrail.training.features import Features, divided, features, said, scored_split, source_of

SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
NEIGHBOURS, TEMPERATURE = (1, 10, 20), 0.07
PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)
MOST_ITERATIONS = 1000
BIAS = 100.0
Method = Literal["linear", "fewshot", "knn"]


def probe(
    run: str | Path | Run,
    data: str | None = None,
    *,
    method: Method = "linear",
    pretrained: bool = False,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Fit a small classifier on what `run` (a run folder, or a model's name) computes for training images, and score
    it on test (val where there is no test). The model stays as it is; `data` may have other classes than it.

    Returns run, weights, data, split, method, n and n_train (images), dim, damaged (names), rows (what was measured, a
    dict each), and top1: of linear, the accuracy; of fewshot, with 10 images a class; of knn, 20 neighbours weighted.
    """
    run = load(run, pretrained=pretrained)
    source = source_of(run, data)
    split = scored_split(source)
    held = features(run, source, split, batch_size=batch_size)
    if method == "linear":
        fitted, chosen = divided(source, "train", share=0.2)
        source = replace(source, splits={**source.splits, "fitted": fitted, "chosen": chosen})
        known = [features(run, source, part, batch_size=batch_size) for part in ("fitted", "chosen")]
        result = linear(known[0], known[1], held)
    else:
        known = [features(run, source, "train", batch_size=batch_size)]
        result = fewshot(known[0], held, source) if method == "fewshot" else knn(known[0], held, len(source.classes))
    return {
        "run": said(run),
        "weights": run.weights,
        "data": source.name,
        "split": split,
        "method": method,
        "n": len(held.labels),
        "n_train": sum(len(part.labels) for part in known),
        "dim": held.x.shape[1],
        "damaged": [name for part in (*known, held) for name in part.damaged],
        **result,
    }


class Whitening(NamedTuple):
    """Mean and deviation of each feature over training images, and what they do to features."""

    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D), with the statistics of the training images whatever x is."""
        return (x - self.mean) / self.std


def whitening(x: Tensor) -> Whitening:
    """The statistics of x (N, D); 1e-5 on the deviation, so that a constant feature becomes 0."""
    return Whitening(x.mean(dim=0), x.std(dim=0, correction=0) + 1e-5)


# ---------------------------------------------------------------------- linear


def linear(fitted: Features, chosen: Features, held: Features) -> dict[str, Any]:
    """Logistic regression by L-BFGS on standardised features. The l2 penalty that is best on `chosen` (the strongest of
    equals) is used for the fit on all training images.

    MAE's linear probe does the same without the choice: LARS for 90 epochs without weight decay, on augmented crops,
    through a BatchNorm without affine, which is this standardisation. Here every image is seen once, unaugmented, and
    the optimum is reached; expect a number near MAE's, not the same.
    """
    whiten = whitening(fitted.x.double())
    ready = whiten(chosen.x.double()).numpy()
    tried = _regressions(whiten(fitted.x.double()), fitted.labels, PENALTIES)
    rows = [
        {"l2": l2, "chosen_top1": _accuracy(model.predict(ready), chosen.labels)}
        for l2, model in zip(PENALTIES, tried, strict=True)
    ]
    best = max(rows, key=lambda row: row["chosen_top1"])["l2"]
    x = torch.cat([fitted.x, chosen.x]).double()
    whiten = whitening(x)
    model = next(_regressions(whiten(x), torch.cat([fitted.labels, chosen.labels]), (best,)))
    return {
        "rows": rows,
        "l2": best,
        "converged": int(model.n_iter_.max()) < MOST_ITERATIONS,
        "top1": _accuracy(model.predict(whiten(held.x.double()).numpy()), held.labels),
    }


def _regressions(x: Tensor, labels: Tensor, penalties: tuple[float, ...]) -> Iterator[Any]:
    """One scikit-learn model, fitted anew with each penalty, from where the one before has led."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    for l2 in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
            model.set_params(C=1 / l2).fit(x.numpy(), labels.numpy())
        yield model


def _accuracy(predicted: Any, labels: Tensor) -> float:
    return float((np.asarray(predicted) == labels.numpy()).mean())


# ---------------------------------------------------------------------- few shots


def fewshot(train: Features, held: Features, source: Source) -> dict[str, Any]:
    """Least squares from few images of each class, three draws each. A class with fewer images gives all it has and is
    named in the row. `spread` is the standard deviation over the draws."""
    count = len(source.classes)
    x, held_x = train.x.double(), held.x.double()
    images = np.bincount(train.labels.numpy(), minlength=count)
    rows: list[dict[str, Any]] = []
    for shots in SHOTS:
        scores = []
        for seed in SEEDS:
            index = draw(train.labels.numpy(), count, shots, seed)
            predict = least_squares(x[index], train.labels[index], count)
            scores.append(_accuracy(predict(held_x).argmax(dim=1), held.labels))
        rows.append(
            {
                "shots": shots,
                "top1": float(np.mean(scores)),
                "spread": float(np.std(scores, ddof=1)),
                "seeds": scores,
                "n_train": int(np.minimum(images, shots).sum()),
                "fewer": [source.classes[k] for k in np.flatnonzero(images < shots)],
            }
        )
    return {"rows": rows, "top1": rows[SHOTS.index(10)]["top1"]}


def draw(labels: Any, num_classes: int, shots: int, seed: int) -> Any:
    """Positions of `shots` images of each class, drawn as big_vision's evaluator does: more shots keep the fewer."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:shots] for k in range(num_classes)])


class LeastSquares(NamedTuple):
    """A fitted linear map from whitened features and a constant to one score a class."""

    whiten: Whitening
    weights: Tensor
    """(D + 1, K); the last row is the bias over 100."""

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> scores (N, K), between -1 and 1 or so."""
        return _with_constant(self.whiten(x)) @ self.weights


def least_squares(
    x: Tensor, labels: Tensor, num_classes: int, *, l2: float = 2.0**10, dual: bool | None = None
) -> LeastSquares:
    """Ridge regression of targets -1 and +1 on x (N, D): the linear few-shot evaluation of the papers on ViT.

    W = (X'X + l2)^-1 X'Y, or equally X'(XX' + l2)^-1 Y, whichever is the smaller system. The bias is the weight of a
    constant feature of 100, so hardly penalised. The reference solves in float32, on a CPU.
    Source: big_vision, evaluators/fewshot_lsr.py.
    """
    whiten = whitening(x)
    x = _with_constant(whiten(x))
    y = 2 * F.one_hot(labels, num_classes).to(x.dtype) - 1
    dual = x.shape[0] < x.shape[1] if dual is None else dual
    gram = x @ x.T if dual else x.T @ x
    gram.diagonal().add_(l2)
    return LeastSquares(whiten, x.T @ torch.linalg.solve(gram, y) if dual else torch.linalg.solve(gram, x.T @ y))


def _with_constant(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=BIAS)


# ---------------------------------------------------------------------- nearest neighbours


def knn(train: Features, held: Features, num_classes: int) -> dict[str, Any]:
    """Nearest training images by cosine similarity: the majority, and DINO's vote weighted by exp(similarity / 0.07).
    Equal votes go to the lower class number."""
    plain, weighted = votes(train, held.x, num_classes, NEIGHBOURS)
    rows = [
        {"k": k, "majority": _accuracy(a, held.labels), "weighted": _accuracy(b, held.labels)}
        for k, a, b in zip(NEIGHBOURS, plain, weighted, strict=True)
    ]
    return {"rows": rows, "top1": rows[-1]["weighted"]}


def votes(
    train: Features, queries: Tensor, num_classes: int, neighbours: tuple[int, ...], most: int = 2**24
) -> tuple[Tensor, Tensor]:
    """Classes (len(neighbours), N) of queries (N, D): by majority, and weighted. At most `most` similarities are held
    at a time; where there are fewer training images than neighbours, all vote."""
    bank = F.normalize(train.x, dim=1)
    plain: list[Tensor] = []
    weighted: list[Tensor] = []
    for chunk in F.normalize(queries, dim=1).split(max(1, most // max(len(bank), num_classes))):
        near = (chunk @ bank.T).topk(min(max(neighbours), len(bank)), dim=1)
        labels, similarity = train.labels[near.indices], near.values
        # relative to the nearest: the scale of the weights does not change who wins
        weights = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()
        for winners, ballots in ((plain, torch.ones_like(weights)), (weighted, weights)):
            none = torch.zeros(len(chunk), num_classes)
            counts = (none.scatter_add(1, labels[:, :k], ballots[:, :k]) for k in neighbours)
            winners.append(torch.stack([count.argmax(dim=1) for count in counts]))
    return torch.cat(plain, dim=1), torch.cat(weighted, dim=1)
