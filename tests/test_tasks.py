"""Every task keeps the loop's contract; several labels an image, from a table to the report."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import vitrail
from PIL import Image
from sklearn.metrics import average_precision_score
from toy_data import STILL, loader, recipe, source, three, whole

from vitrail.comparison.report import write_report
from vitrail.data.sources import Source, open_source
from vitrail.errors import UserError
from vitrail.recipe import Recipe
from vitrail.run import build, load, save_weights, start
from vitrail.training.evaluate import evaluate, score
from vitrail.training.predict import predict
from vitrail.training.tasks import choose_task
from vitrail.training.tasks.classify import Classify
from vitrail.training.tasks.task import Task

CPU = torch.device("cpu")
SEVERAL = source([[0, 2], [1], [], [0], [1, 2], [2]] * 2, ["a", "b", "c"], several=True)
RECIPES = {
    "cross_entropy": (recipe(label_smoothing=0.1, class_weights="auto"), three()),
    "bce": (recipe(loss="bce", class_weights="a=2"), three()),
    "mixed": (recipe(augment=replace(STILL, mixup=0.8, cutmix=1.0)), three()),
    "multilabel": (recipe(task="multilabel", class_weights="auto"), SEVERAL),
    "colour": (recipe(task="masked_patches"), three()),
    "pixels": (recipe(task="masked_patches", masked__target="pixels"), three()),
}


def teach(folder: Path) -> Path:
    start(folder, recipe(), ["a", "b", "c"])
    save_weights(folder, build(recipe(), 3).state_dict())
    return folder


@pytest.fixture(params=[*RECIPES, "distilled"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Recipe, Source, Task]:
    if request.param == "distilled":
        chosen, data = recipe(distill__teacher=str(teach(tmp_path / "teacher"))), three()
    else:
        chosen, data = RECIPES[request.param]
    return chosen, data, choose_task(chosen, data, CPU, tmp_path)


def test_a_task_keeps_the_contract(made):
    chosen, data, task = made
    model = build(chosen, 3)
    module = task.module(model)
    assert module is model or module.model is model
    torch.manual_seed(0)
    batch = whole(data, chosen)
    before = batch.images.clone()
    parts = task.prepare(batch)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(parts, task.prepare(batch), strict=True)), "one seed, one batch"
    assert torch.equal(batch.images, before)
    assert {len(part) for part in parts} == {12}

    loss = task.loss(module, *parts)
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    cut = sum(
        task.loss(module, *(part[a:b] for part in parts)) * (b - a) / 12 for a, b in itertools.pairwise([0, 1, 6, 12])
    )
    assert cut.item() == pytest.approx(loss.item(), abs=1e-5)

    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    result = task.score(module.train(), loader(data, chosen), CPU)
    assert module.training
    assert {"loss", task.metric, "damaged"} <= result.keys()
    assert json.dumps(result, allow_nan=False)


def test_the_held_out_loss_is_plain():
    """No weights, no smoothing, no mixing: what evaluate says, and the same for every recipe."""
    chosen, data = RECIPES["cross_entropy"]
    model = build(chosen, 3)
    result = Classify(chosen, data).score(model, loader(data, chosen), CPU)
    scored = score(model, loader(data, chosen, 12), CPU)
    assert result["loss"] == pytest.approx(F.cross_entropy(scored.logits, scored.labels).item(), rel=1e-5)
    assert result["top1"] == (scored.logits.argmax(1) == scored.labels).double().mean().item()


def test_mixing_only_some_batches():
    chosen = recipe(augment=replace(STILL, mixup=0.8, mix_prob=0.5))
    task, batch = Classify(chosen, three()), whole(three(), chosen)
    torch.manual_seed(0)
    mixed = [not torch.equal(task.prepare(batch)[0], batch.images) for _ in range(200)]
    assert 70 < sum(mixed) < 130


# ------------------------------------------------------------------ classes of a run and of a source


def test_labels_are_matched_by_name(tmp_path):
    """A source that lists the same classes in another order gives the same scores."""
    chosen = recipe(data__source="x")
    start(tmp_path / "run", chosen, ["a", "b", "c"])
    model = build(chosen, 3)
    torch.nn.init.normal_(model.head.weight)
    save_weights(tmp_path / "run", model.state_dict())
    straight = evaluate(tmp_path / "run", source=three())
    turned = evaluate(tmp_path / "run", source=source([(i % 3 + 1) % 3 for i in range(12)], ["c", "a", "b"]))
    assert turned["top1"] == straight["top1"]
    assert turned["loss"] == pytest.approx(straight["loss"], abs=1e-6)
    with pytest.raises(UserError, match="toy has several labels an image and the model gives one"):
        evaluate(tmp_path / "run", source=SEVERAL)


# ------------------------------------------------------------------ several labels, end to end

COLOURS = {"red": 0, "green": 1, "deep blue": 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures, each with a bright channel for every label it has: none, one, two or all three."""
    home = tmp_path_factory.mktemp("several")
    draw = np.random.default_rng(0)
    lines = ["path,labels,split"]
    for number, has in enumerate(list(itertools.product([False, True], repeat=3)) * 6):
        pixels = draw.integers(0, 60, (8, 8, 3), dtype=np.uint8)
        pixels[:, :, has] += 180
        Image.fromarray(pixels).save(home / f"{number}.png")
        words = "|".join(name for name, channel in COLOURS.items() if has[channel])
        lines.append(f"{number}.png,{words},{'train' if number < 32 else 'test'}")
    (home / "labels.csv").write_text("\n".join(lines) + "\n")
    return home / "labels.csv"


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the task's own steps on that table, its scores beside it."""
    data = open_source(table)
    chosen = recipe(task="multilabel", data__source=str(table), label_smoothing=0.02)
    task, model = Classify(chosen, data), build(chosen, 3)
    data.splits["val"] = data.splits["train"]
    batch, optimizer = whole(data, chosen), torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        task.loss(model, *task.prepare(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("runs") / "several"
    start(folder, chosen, data.classes)
    save_weights(folder, model.state_dict())
    (folder / "final.json").write_text(json.dumps(evaluate(folder), allow_nan=False))
    line = {"epoch": 1, "step": 40, "lr": 3e-3, "train_loss": 0.5, "split": "test", "metric": "map", "val_loss": 0.6}
    (folder / "log.jsonl").write_text(json.dumps({**line, "val_map": 0.9, "images_per_s": 9.0, "damaged": 0}) + "\n")
    return folder


def test_evaluate_several_labels(table, trained):
    result = evaluate(trained)
    assert (result["metric"], result["n"], result["split"]) == ("map", 16, "test")
    assert result["map"] > 0.95
    assert result["micro_f1"] > 0.9
    assert [row["n"] for row in result["per_class"]] == [8, 8, 8]
    split = open_source(table).splits["test"]
    answers = predict(trained, [table.parent / split.name(i) for i in range(16)], top=3)
    said = [[{each["class"]: each["probability"] for each in a["top"]}[c] for c in result["classes"]] for a in answers]
    hot = [[k in labels for k in range(3)] for labels in split.labels]
    assert result["map"] == pytest.approx(average_precision_score(hot, said))


def test_predict_gives_each_class_its_own_probability(table, trained):
    bright, dark = predict(trained, [table.parent / "7.png", table.parent / "0.png"], top=3)
    assert [each["probability"] > 0.5 for each in bright["top"]] == [True] * 3
    assert [each["probability"] > 0.5 for each in dark["top"]] == [False] * 3
    model = load(trained).model
    assert not model.training


def test_the_verbs_speak_of_several_labels(table, trained):
    said = vitrail("eval", trained)
    assert said.code == 0, said.err
    assert "average precision" in said.out
    assert "mean average precision 9" in said.out or "mean average precision 100" in said.out
    assert "deep blue" in said.out
    assert vitrail("eval", trained, "--json").json()["metric"] == "map"
    said = vitrail("predict", trained, table.parent / "7.png")
    assert said.code == 0, said.err
    assert "deep blue" in said.out


def test_the_report_of_several_labels(trained):
    page = write_report(trained).read_text(encoding="utf-8")
    for words in ("test mean average precision", "several labels an image", "class, worst first", "average precision"):
        assert words in page
    assert "What is taken for what" not in page
    assert "Mean average precision" in page


def test_the_report_shows_what_several_labels_were_taken_for(trained, tmp_path):
    wrong = {"file": "3.png", "index": 3, "true": ["red", "<b>"], "predicted": [], "loss": 2.5}
    final = json.loads((trained / "final.json").read_text()) | {"mistakes": [wrong]}
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "final.json").write_text(json.dumps(final))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'called <span class="wrong">nothing</span>, is <b>red, &lt;b&gt;</b>' in page
    assert "Mistakes with the highest loss" in page


def test_the_report_of_masked_patches(trained, tmp_path):
    chosen = replace(load(trained).recipe, task="masked_patches")
    final = {"metric": "patch_accuracy", "split": "test", "n": 16, "patches": 128, "loss": 1.5}
    final |= {"patch_accuracy": 0.625, "baseline": 0.25, "damaged": [], "target": "colour"}
    start(tmp_path / "run", chosen, ["deep blue", "green", "red"])
    save_weights(tmp_path / "run", load(trained).model.state_dict())
    (tmp_path / "run" / "final.json").write_text(json.dumps(final))
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    for words in ("62.50%", "the commonest: 25.0%", "128", "predict the colour of 50%", "--initial-checkpoint"):
        assert words in page
    assert "vitrail predict" not in page
