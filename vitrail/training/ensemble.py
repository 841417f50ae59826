"""Several models vote. What a vote counts is decided on validation images, how good the vote is on others.

Every way to vote is linear: member m gives each class of an image its ballot (probabilities, or 1 to its first choice),
the ballots are added up with the members' weights, and the class with most wins (of equals, the lower number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources import Part, Source, Split
from vitrail.errors import UserError
from vitrail.run import Run, best_device, load
from vitrail.training.evaluate import score
from vitrail.training.features import divided, images_of, said, scored_split, source_of

Vote = Literal["soft", "hard"]
Weights = Literal["uniform", "accuracy", "log-odds", "greedy"]
COLDEST, HOTTEST = 0.05, 20.0


class Views(NamedTuple):
    """What M members say of the same N images of K classes."""

    logits: Tensor
    """(M, N, K) float64."""
    labels: Tensor
    """(N,) long."""
    damaged: list[str]


def ensemble(
    runs: Sequence[str | Path | Run],
    data: str | None = None,
    *,
    vote: Vote = "soft",
    weights: Weights = "uniform",
    calibrate: bool = False,
    pretrained: bool = False,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Have runs (or models by name; `pretrained` is for those) vote on the images of `data`, or of the first run.

    Weights come from val, the score from test; where only one of them is there, from one half of it (stratified,
    seed 0) and from the other. Each member sees the images in its own way. With `calibrate`, each member's logits are
    divided by the temperature that suits the val images best. Returns members (run, val_top1, temperature, weight,
    top1), top1 with its 95 % interval (Wilson), best (the member with the highest top1) and whether the ensemble beats
    it: `gained` images that only the ensemble has right, `lost` only the member, and p of the exact McNemar test.
    Raises UserError where members have other classes, or no image is left that no member was trained on.
    """
    if len(runs) < 2:
        raise UserError("an ensemble needs at least two runs")
    members = [load(run, pretrained=pretrained and not _is_folder(run)) for run in runs]
    source = source_of(members[0], data)
    _same_classes(members, source)
    source, notes = _unseen(members, source, data or members[0].recipe.data.source)
    source, deciding, scored = _two_splits(source, notes)
    val, test = (views(members, source, split, batch_size) for split in (deciding, scored))
    heat = [temperature(logits, val.labels) if calibrate else 1.0 for logits in val.logits]
    cooling = torch.tensor(heat, dtype=torch.float64)[:, None, None]
    known, asked = (ballots(part.logits / cooling, vote) for part in (val, test))
    shares = member_weights(known, val.labels, weights)
    total = torch.einsum("m,mnk->nk", shares, asked)
    right = total.argmax(dim=1) == test.labels
    each = test.logits.argmax(dim=2) == test.labels
    before = (val.logits.argmax(dim=2) == val.labels).double().mean(dim=1)
    return {
        "members": [
            {"run": said(run), "weights": run.weights, "val_top1": float(a), "temperature": t, "weight": float(w)}
            | {"top1": float(hits.double().mean()), "interval": _interval(hits)}
            for run, a, t, w, hits in zip(members, before, heat, shares, each, strict=True)
        ],
        "vote": vote,
        "weights": weights,
        "data": source.name,
        "notes": notes,
        "n_val": len(val.labels),
        "n": len(test.labels),
        "damaged": [*val.damaged, *test.damaged],
        "top1": float(right.double().mean()),
        "interval": _interval(right),
        **_against_best(right, each, members),
    }


def _is_folder(run: str | Path | Run) -> bool:
    return not isinstance(run, Run) and Path(run).is_dir()


# ---------------------------------------------------------------------- the vote


def ballots(logits: Tensor, vote: Vote) -> Tensor:
    """(..., K) -> (..., K): softmax, or 1 for the highest and 0 for the others."""
    if vote == "soft":
        return logits.softmax(dim=-1)
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)


def member_weights(cast: Tensor, labels: Tensor, weights: Weights) -> Tensor:
    """Ballots (M, N, K) of validation images, labels (N,) -> weights (M,), which sum to 1.

    accuracy: a / sum a. log-odds: ln(a (K - 1) / (1 - a)), best for voters that err independently and evenly over the
    classes; who has every image right is taken to have all but half an image right. greedy: `forward_selection`.
    """
    count, images, classes = cast.shape
    right = (cast.argmax(dim=2) == labels).double().mean(dim=1)
    if weights == "greedy":
        chosen = forward_selection(cast, labels)
    elif weights == "log-odds":
        chosen = log_odds(right, classes, margin=0.5 / images)
    elif weights == "accuracy" and right.sum() > 0:
        chosen = right
    else:
        chosen = torch.ones(count, dtype=torch.float64)
    return chosen / chosen.sum()


def log_odds(accuracy: Tensor, classes: int, margin: float) -> Tensor:
    """ln(a (K - 1) / (1 - a)) of accuracies (M,) up to 1 - margin; who is no better than chance counts (almost) 0."""
    a = accuracy.clamp(max=1 - margin)
    return (a * (classes - 1) / (1 - a)).log().clamp(min=1e-9)


def forward_selection(cast: Tensor, labels: Tensor, rounds: int = 10) -> Tensor:
    """How often each member (M,) is taken when, again and again, the one is added that helps the average ballot most.

    With replacement, `rounds` times M at most; of all averages on the way, the best and earliest counts. Better: more
    images right, then more ballot for the true class. Source: Caruana et al., 2004.
    """
    members, images = cast.shape[:2]
    taken = torch.zeros(members, dtype=torch.float64)
    total, best, kept = torch.zeros_like(cast[0]), (-1.0, -1.0), taken
    for step in range(1, rounds * members + 1):
        grades = []
        for one in cast:
            mean = (total + one) / step
            right = (mean.argmax(dim=1) == labels).double().mean()
            grades.append((float(right), round(float(mean[torch.arange(images), labels].mean()), 12)))
        choice = grades.index(max(grades))
        total = total + cast[choice]
        taken = taken + F.one_hot(torch.tensor(choice), members)
        if grades[choice] > best:
            best, kept = grades[choice], taken
    return kept


def temperature(logits: Tensor, labels: Tensor) -> float:
    """T in [0.05, 20] with the least mean cross-entropy of logits / T, (N, K) float64 and (N,). Source: Guo et al.,
    2017. The bounds matter where every image is right, and colder is always better."""
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(logits.detach() / log_t.exp(), labels)
        value.backward()
        return value

    solver.step(loss)
    return min(max(float(log_t.detach().exp()), COLDEST), HOTTEST)


# ---------------------------------------------------------------------- the images


def views(members: Sequence[Run], source: Source, split: str, batch_size: int | None) -> Views:
    """The members' logits for a split, one member on the device at a time."""
    device = best_device()
    answers = []
    for run in members:
        images = images_of(run, source.splits[split], len(source.classes), batch_size)
        answers.append(score(run.model.to(device), images, device))
        run.model.cpu()
    first = answers[0]
    assert all(torch.equal(first.index, answer.index) for answer in answers), "the same images can be read for all"
    return Views(torch.stack([answer.logits.double() for answer in answers]), first.labels, first.damaged)


def _same_classes(members: Sequence[Run], source: Source) -> None:
    """The members' outputs must mean the same, and what the labels mean. A name's classes have no names."""
    wanted = source.classes
    for run in members:
        if run.recipe.task != "classify":
            raise UserError(f"{said(run)} was trained for {run.recipe.task} and names no class; fine-tune it first")
        if len(run.classes) != len(wanted) or (run.folder is not None and run.classes != wanted):
            raise UserError(
                f"{said(run)} has other classes ({_few(run.classes)}) than {source.name} ({_few(wanted)}); "
                f"an ensemble's members must all have the classes of the images"
            )


def _few(classes: list[str]) -> str:
    return f"{len(classes)}: {', '.join(classes[:3])}" + (", …" if len(classes) > 3 else "")


def _unseen(members: Sequence[Run], source: Source, data: str) -> tuple[Source, list[str]]:
    """The source without held-out images that some member was trained on: where a source has no split of its own, runs
    of other seeds hold out others."""
    if "test" in source.splits:
        return source, []
    seen: set[str] = set()
    for run in members:
        if run.folder is not None and _place(run.recipe.data.source) == _place(data):
            train = source_of(run, None).splits["train"]
            seen |= {train.name(i) for i in range(len(train))}
    held = source.splits["val"]
    kept = [i for i in range(len(held)) if held.name(i) not in seen]
    if not kept:
        raise UserError(f"every image of {source.name} was trained on by some member; give data that none has seen")
    if len(kept) == len(held):
        return source, []
    left_out = f"{len(held) - len(kept)} of {len(held)} val images left out: a member was trained on them"
    return replace(source, splits={**source.splits, "val": Part(held, kept)}), [left_out]


def _place(data: str) -> str:
    """A folder or file by its full path, anything else by its name."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data


def _two_splits(source: Source, notes: list[str]) -> tuple[Source, str, str]:
    """The source, the split that decides on weights and the one that is scored."""
    only = scored_split(source)
    if only == "test" and "val" in source.splits:
        return source, "val", "test"
    halves: tuple[Split, Split] = divided(source, only, share=0.5)
    notes.append(f"no {'val' if only == 'test' else 'test'} split: weights from one half of {only}, score on the other")
    return replace(source, splits={"val": halves[0], "test": halves[1]}), "val", "test"


# ---------------------------------------------------------------------- what it is worth


def _interval(right: Tensor) -> list[float]:
    from scipy.stats import binomtest

    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return [float(low), float(high)]


def _against_best(right: Tensor, each: Tensor, members: Sequence[Run]) -> dict[str, Any]:
    """The ensemble beside the member that is best on the very images that are scored: the hardest comparison."""
    from scipy.stats import binomtest

    best = int(each.sum(dim=1).argmax())
    gained, lost = int((right & ~each[best]).sum()), int((~right & each[best]).sum())
    return {
        "best": said(members[best]),
        "beats_best": gained > lost,
        "gained": gained,
        "lost": lost,
        "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }
