"""Every family through the same commands: train on real images, score, explain, export. It takes minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import vitrail
from references import family
from rows import Row
from test_models import FAMILIES

TOY = """
from dataclasses import replace

from vitrail.models import {family}

VARIANTS = {{"toy": replace({family}.VARIANTS["{name}"], **{tiny!r})}}
Model = {family}.Model
"""


@pytest.mark.slow
@pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)
def test_every_family_trains_and_is_used(row: Row, shared_data: Path, tmp_path: Path) -> None:
    data, run = shared_data / "cifar10_subset.npz", tmp_path / "run"
    toy = tmp_path / "toy.py"
    toy.write_text(TOY.format(family=family(row.name), name=row.name, tiny=row.tiny))
    steps = ["--recipe", "scratch/small_images", "--schedule.epochs", 2, "--schedule.warmup-epochs", 0.5]
    steps += ["--optim.lr", 1e-2, "--augment.rand-augment", 0, "--augment.erasing", 0]
    small = ["--data.limit", 1000, "--data.batch-size", 50, "--data.workers", 0, "--data.img-size", row.side]
    said = vitrail("train", data, "--model", f"{toy}:toy", "--out", run, *steps, *small)
    assert said.code == 0, said.err
    losses = [json.loads(line)["train_loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses[1] < losses[0]

    scores = vitrail("eval", run, "--json")
    assert scores.code == 0, scores.err
    assert scores.json()["top1"] == pytest.approx(json.loads((run / "final.json").read_text())["top1"])

    photo = tmp_path / "photo.png"
    from PIL import Image

    Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()).save(photo)
    for words in (["predict", run, photo], ["explain", run, photo, "--out", tmp_path / "maps"]):
        said = vitrail(*words)
        assert said.code == 0, said.err
    assert list((tmp_path / "maps").glob("*.png"))

    for ending in (".safetensors", ".pt2", ".onnx"):
        said = vitrail("export", run, tmp_path / f"model{ending}")
        assert said.code == 0, said.err
        assert (tmp_path / f"model{ending}").stat().st_size > 1000
