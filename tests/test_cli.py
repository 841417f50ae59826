"""The command line from end to end: every verb, what it prints where, its exit code. Mistakes: test_mistakes.py."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Said, tiny_run, vitrail
from PIL import Image

from vitrail import cli, models
from vitrail.errors import Interrupted

CHILD = [sys.executable, "-m", "vitrail"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("cli") / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two good pictures and a damaged one between them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    Image.fromarray(pixels[1]).save(folder / "c.png")
    return folder


# ---------------------------------------------------------------------- what needs no run


def test_help_names_every_verb_and_every_verb_has_help() -> None:
    from vitrail.commands import COMMANDS, WITH_RECIPE

    said = vitrail("--help")
    assert said == vitrail() == vitrail("-h")
    assert (said.code, said.err) == (0, "")
    assert set(cli.VERBS) == {*WITH_RECIPE, *COMMANDS}
    for verb in cli.VERBS:
        assert f"\n  {verb} " in said.out
        assert vitrail(verb, "--help").out.startswith(f"usage: vitrail {verb} ")


def test_a_process_that_ends_quickly_says_all_and_gives_its_code() -> None:
    done = subprocess.run([*CHILD, "models"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) > len(models.list_models()), "a pipe gets every line"
    assert subprocess.run([*CHILD, "nonsense"], capture_output=True, check=False).returncode == 2
    halfway = "from vitrail import cli; cli._answer = lambda *_: print('half') or cli.VERBS['x']; cli.command()"
    assert subprocess.run([sys.executable, "-c", halfway], capture_output=True, check=False).stdout == b"half\n"
    broken = "from vitrail import cli; cli.main = lambda: 1 / 0; cli.command()"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_train_help_lists_the_recipe() -> None:
    said = vitrail("train", "--help")
    for flag in ("--model", "--recipe", "--out", "--seed", "--schedule.epochs", "--smoke", "--resume", "--json"):
        assert f" {flag} " in said.out.replace(",", " ").replace("\n", " "), flag


def test_version() -> None:
    assert vitrail("--version").out.startswith("vitrail 0.")


def test_models_lists_all() -> None:
    rows = vitrail("models", "--json").json()["models"]
    assert [row["name"] for row in rows] == models.list_models()
    assert all(row["params"] and row["paper"] for row in rows)
    table = vitrail("models")
    assert all(row["name"] in table.out for row in rows), "no name is broken over two lines"
    assert table.err == f"{len(rows)} names\n"


def test_models_by_pattern() -> None:
    assert [row["name"] for row in vitrail("models", "resnet?8", "--json").json()["models"]] == ["resnet18"]
    assert len(vitrail("models", "vit_pico", "--json").json()["models"]) == 3


def test_show() -> None:
    about = vitrail("show", "vit_small_patch16_224", "--json").json()
    assert about["config"]["embed_dim"] == 384
    assert about["printed"] == {"params": "22.1M", "FLOPs": "4.60G", "top-1": "81.40"}
    assert about["weights"]["licence"]
    text = vitrail("show", "vit_small_patch16_224").out
    assert "arXiv 2010.11929" in text
    assert "embed_dim" in text


def test_recipes() -> None:
    listed = vitrail("recipes", "--json").json()["recipes"]
    assert {"quickstart", "deit", "deit/small", "finetune", "scratch"} <= set(listed)
    assert all(f"{name} " in vitrail("recipes").out for name in listed)


def test_doctor(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail("doctor", "digits", "--json")
    assert said.json() == json.loads((tmp_path / "doctor.json").read_text(encoding="utf-8"))
    (tmp_path / "photos").mkdir()
    pictures.rename(tmp_path / "photos" / "cat")
    said = vitrail("doctor", "photos", "--out", "found.json")  # one class, one damaged file: looked at all the same
    assert said.code == 0
    assert "b.png" in said.out
    assert "one class only" in said.out
    assert (tmp_path / "found.json").is_file()


def test_show_batch(tmp_path: Path) -> None:
    said = vitrail("show-batch", "digits", "--out", tmp_path / "batch.png")
    assert said.out == f"{tmp_path / 'batch.png'}\n"
    with Image.open(tmp_path / "batch.png") as picture:
        assert min(picture.size) > 100


# ---------------------------------------------------------------------- train, then use


def test_train_prints_results_and_what_comes_next(run: Path) -> None:
    said = Said(**json.loads((run.parent / "said.json").read_text()))
    assert said.out == ""
    top1 = json.loads((run / "final.json").read_text(encoding="utf-8"))["top1"]
    assert f"test accuracy {top1:.2%} (60 images)" in said.err
    assert "epoch   2/2" in said.err
    for word in (f"report   {run / 'report.html'}", f"vitrail explain {run} IMAGE..."):
        assert word in said.err
    for file in ("model.safetensors", "classes.json", "recipe.json", "log.jsonl", "report.html"):
        assert (run / file).stat().st_size, file


def test_eval(run: Path) -> None:
    final = json.loads((run / "final.json").read_text(encoding="utf-8"))
    result = vitrail("eval", run, "--json").json()
    assert result == final
    assert 0 <= result["top1"] <= result["top5"] <= 1
    assert result["n"] == sum(row["n"] for row in result["per_class"]) == 60
    said = vitrail("eval", run)
    assert f"{result['top1']:.2%} of 60 test images of digits right" in said.out
    assert vitrail("eval", run, "digits", "--split", "train", "--json").json()["split"] == "train"


def test_eval_of_a_bare_model_names_its_weights() -> None:
    result = vitrail("eval", "vit_pico_patch2_8", "digits", "--json")
    assert result.code == 1  # 1000 classes against ten
    assert "1000" in result.err


@pytest.mark.parametrize("asked", ["folder", "pattern", "files"])
def test_predict(asked: str, run: Path, pictures: Path) -> None:
    ways = {"folder": [str(pictures)], "pattern": [f"{pictures}/*.png"], "files": sorted(map(str, pictures.iterdir()))}
    said = vitrail("predict", run, *ways[asked], "--json", "--top", 2)
    assert said.code == 0
    answers = said.json()["predictions"]
    assert [Path(answer["file"]).name for answer in answers] == ["a.png", "b.png", "c.png"]
    assert set(answers[1]) == {"file", "error"}
    assert answers[1]["error"] in said.err
    for answer in (answers[0], answers[2]):
        assert answer["top"][0]["class"] == answer["class"]
        assert len(answer["top"]) == 2
        assert 0.1 <= answer["probability"] <= 1
    assert said.json()["weights"] == f"trained in {run}"


def test_predict_as_a_table(run: Path, pictures: Path) -> None:
    for odd in ("[red]x.png", ":cat:.png"):  # no markup of ours
        (pictures / odd).write_bytes((pictures / "a.png").read_bytes())
    said = vitrail("predict", run, pictures)
    assert said.code == 0
    assert all(name in said.out for name in ("a.png", "c.png", "[red]x.png", ":cat:.png"))
    assert "b.png" not in said.out
    weights, damaged = said.err.splitlines()
    assert weights == f"{run}: trained in {run}"
    assert damaged.startswith(f"left out: cannot read image {pictures / 'b.png'}: ")


@pytest.mark.parametrize("method", ["rollout", "attention", "gradcam"])
def test_explain(method: str, run: Path, pictures: Path, tmp_path: Path) -> None:
    said = vitrail("explain", run, pictures, "--method", method, "--out", tmp_path / "maps", "--json")
    assert said.code == 0
    rows = said.json()["explanations"]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "c.png"]
    for row in rows:
        assert row["method"] == method
        with Image.open(row["picture"]) as picture:
            assert picture.format == "PNG"
    assert "1 of 3 images left out" in said.err


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "resnet18"])
def test_a_bare_name_says_random_weights(name: str, pictures: Path, tmp_path: Path) -> None:
    said = vitrail("explain", name, pictures / "a.png", "--out", tmp_path / "maps")
    assert said.code == 0
    assert said.out.startswith(str(tmp_path / "maps" / "a_"))
    assert f"{name}: random weights" in said.err
    assert vitrail("predict", name, pictures / "a.png", "--json").json()["weights"].startswith("random weights")


def test_export(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    said = vitrail("export", run, out)
    assert (said.code, said.out) == (0, f"{out}\n")
    assert "loaded again, its logits differ by" in said.err
    train = vitrail(
        *("train", "--initial-checkpoint", out, "--smoke", "--out", tmp_path / "next", "--augment.crop", "none")
    )
    assert train.code == 0, train.err


def test_a_copied_file_trains_and_is_found_from_elsewhere(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail("copy", "vit_pico", "my_vit.py")
    assert said.code == 0
    text = Path("my_vit.py").read_text(encoding="utf-8").replace('"vit_pico_patch2_8"', '"my_own"')
    Path("my_vit.py").write_text(text, encoding="utf-8")
    assert vitrail("show", "my_vit.py:my_own", "--json").json()["name"] == "my_own"
    said = vitrail("train", "--model", "./my_vit.py:my_own", "--smoke")
    assert said.code == 0, said.err
    assert (tmp_path / "runs" / "digits-my_own-1" / "report.html").is_file()
    monkeypatch.chdir(pictures)
    assert vitrail("predict", tmp_path / "runs" / "digits-my_own-1", "a.png").code == 0


def test_the_data_decide_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail import recipes, verbs

    started: list[Any] = []

    def train(recipe: Any, *, out: str | None) -> Path:
        started.append((recipe, out))
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "train", train)
    for words, model in (
        ([], "vit_pico_patch2_8"),
        (["digits"], "vit_pico_patch2_8"),
        (["photos"], "vit_tiny_patch16_224"),
        (["--data.source", "photos"], "vit_tiny_patch16_224"),
        (["photos", "--recipe", "deit/small"], "deit_small_patch16_224"),
        (["photos", "--recipe", "deit/small", "--model", "resnet18"], "resnet18"),
    ):
        assert vitrail("train", *words, "--seed", 3, "--schedule.epochs", 7, "--out", "here").code == 130
        recipe, out = started[-1]
        assert (recipe.model, recipe.seed, recipe.schedule.epochs, out) == (model, 3, 7, "here")
        assert recipe.data.source == ("photos" if "photos" in words else "digits")
    assert recipes.find_recipe("deit/small").augment == started[-1][0].augment


def test_resume_of_a_finished_run_says_so(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    said = vitrail("train", "--resume", run, "--json")
    assert said.code == 0
    assert said.json()["run"] == str(run)
    assert f"{run} is finished" in said.err
    assert (run / "model.safetensors").read_bytes() == before


# ---------------------------------------------------------------------- how it ends


def test_interrupts_have_the_shell_s_codes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.training import evaluate

    for raised, code, words in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM, "stopped at step 3\n  as asked"), 143, "stopped at step 3 as asked"),
        (OSError(28, "No space left on device", "log.jsonl"), 1, "log.jsonl: No space left on device"),
    ):

        def stopped(*_: object, error: BaseException = raised, **__: object) -> None:
            raise error

        monkeypatch.setattr(evaluate, "evaluate", stopped)
        assert vitrail("eval", run) == (code, "", f"vitrail: {words}\n")


def test_help_is_quick_and_exit_codes_leave_the_process() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*CHILD, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == cli.help_text() + "\n"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.3, "seconds of processor time: something heavy is imported"
    wrong = subprocess.run([*CHILD, "trian"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'train'?" in wrong.stderr


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["models"], ["models", "--json"], ["train", "--help"]])
def test_a_reader_may_go(words: list[str]) -> None:
    """As `vitrail models | head -1` does: no complaint, whatever is still in the buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*CHILD, *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writing)
    assert done.returncode == 1
    assert "Error" not in done.stderr


def test_a_file_name_that_is_no_text(run: Path, pictures: Path) -> None:
    odd = os.fsencode(pictures) + b"/caf\xe9.png"
    os.rename(pictures / "a.png", odd)
    said = vitrail("predict", run, os.fsdecode(odd), "--json")
    assert os.fsencode(said.json()["predictions"][0]["file"]) == odd
    assert "caf\\udce9.png" in vitrail("predict", run, os.fsdecode(odd)).out


def test_the_hostile_pictures_through_the_command_line(run: Path, shared_data: Path) -> None:
    listed = json.loads((shared_data / "hostile" / "manifest.json").read_text(encoding="utf-8"))["files"]
    files = {str(shared_data / "hostile" / entry["file"]): entry["expect"] for entry in listed}
    said = vitrail("predict", run, *files, "--json")
    assert said.code == 0
    for answer in said.json()["predictions"]:
        expected = files.pop(answer["file"])
        assert expected in (
            ("reject", "tar", "decode_or_reject") if "error" in answer else ("decode", "decode_or_reject")
        )
    assert not files
