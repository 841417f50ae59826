"""What else happens to runs: a stop at a bad moment, damage, divergence, another number of workers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import bits, stopped, tiny

from vitrail import checkpoint
from vitrail.data.loader import Batch, Loader
from vitrail.errors import Interrupted, UserError
from vitrail.recipe import Recipe, from_json, to_json
from vitrail.training import loop
from vitrail.training.tasks.classify import Classify

ACCUMULATED = tiny(optim__accumulate=2, checkpoint_minutes=0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `ACCUMULATED`."""
    return loop.fit(ACCUMULATED, tmp_path_factory.mktemp("plain") / "run")


def change(out: Path, edit: Callable[[Recipe], Recipe]) -> None:
    """The recipe of a run, edited by hand."""
    file = out / "recipe.json"
    file.write_text(to_json(edit(from_json(file.read_text()))))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------- stopped at a bad moment


class Killed(BaseException):
    """What no code of the run catches and nothing is saved after."""


def die() -> None:
    raise Killed


@pytest.mark.parametrize("part", [1, 2, 9, 10], ids=lambda part: f"part {part}")
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "asked to stop"])
def test_in_the_middle_of_accumulation(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, part: int
) -> None:
    """Two parts make a step: in the first or the second of step 0 (warm-up) and of step 4 (mid-epoch)."""
    done = 0
    loss = Classify.loss

    def counted(self: Classify, *arguments: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == part:
            die() if killed else signal.raise_signal(signal.SIGTERM)
        return loss(self, *arguments)

    out, step = tmp_path / "run", (part - 1) // 2
    with monkeypatch.context() as patched:
        patched.setattr(Classify, "loss", counted)
        with pytest.raises(Killed if killed else Interrupted):
            loop.fit(ACCUMULATED, out)
    last = checkpoint.load(out / "checkpoints")
    assert (last["step"] if last else 0) == (step if killed else step + 1), "a step is done, or it is not"
    loop.resume(out)
    assert bits(out) == bits(plain)


@pytest.mark.parametrize("final", [False, True], ids=["after an epoch", "at the end"])
def test_a_signal_does_not_wait_until_all_images_are_scored(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: bool
) -> None:
    scorings, given = 0, 0

    class Told(Loader):
        def __init__(self, *arguments: Any, shuffle: bool, **options: Any) -> None:
            super().__init__(*arguments, shuffle=shuffle, **options)
            self.scoring = not shuffle

        def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            nonlocal scorings, given
            scorings += self.scoring
            chosen = self.scoring and scorings == (3 if final else 1)  # one an epoch, then the last
            for batch in super().epoch(epoch, start):
                if chosen:
                    if not given:
                        signal.raise_signal(signal.SIGTERM)
                    given += 1
                yield batch

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "Loader", Told)
        with pytest.raises(Interrupted, match=f"^stopped at step {6 if final else 3}, saved"):
            loop.fit(ACCUMULATED, out)
    assert given == 1
    loop.resume(out)
    assert bits(out) == bits(plain)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (plain / "log.jsonl").read_text().splitlines()]
    assert [{**record, "images_per_s": 0} for record in records] == [{**each, "images_per_s": 0} for each in expected]


# ---------------------------------------------------------------------- resumed with something changed


@pytest.mark.parametrize(("first", "then"), [(0, 1), (1, 2), (2, 0)])
def test_resumed_with_another_number_of_workers(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, then: int
) -> None:
    recipe = replace(ACCUMULATED, data=replace(ACCUMULATED.data, workers=first))
    out = stopped(monkeypatch, tmp_path / "run", 4, recipe)
    change(out, lambda recipe: replace(recipe, data=replace(recipe.data, workers=then)))
    loop.resume(out)
    assert bits(out) == bits(plain)


@pytest.mark.parametrize("damage", ["cut", "flipped", "manifest gone"])
def test_from_a_damaged_checkpoint_the_run_goes_on_with_the_one_before(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    out = stopped(monkeypatch, tmp_path / "run", 4, ACCUMULATED)
    newest = out / "checkpoints" / "step-00000004"
    content = bytearray((newest / "state.pt").read_bytes())
    if damage == "manifest gone":
        (newest / "manifest.json").unlink()
    elif damage == "cut":
        (newest / "state.pt").write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        (newest / "state.pt").write_bytes(content)
    loop.resume(out)
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert bits(out) == bits(plain)


def test_a_learning_rate_out_of_reach_leaves_the_last_good_checkpoint(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(monkeypatch, tmp_path / "run", 4, ACCUMULATED)
    change(out, lambda recipe: replace(recipe, checkpoint_minutes=10, optim=replace(recipe.optim, lr=1e20)))
    before = files(out / "checkpoints")
    sentence = r"^the (loss|gradient's norm) became (nan|inf) at step [45] \(epoch 2\), and the run stopped before that"
    with pytest.raises(UserError, match=sentence):
        loop.resume(out)
    assert files(out / "checkpoints") == before
    change(out, lambda recipe: replace(recipe, optim=ACCUMULATED.optim))
    loop.resume(out)
    assert bits(out) == bits(plain)
