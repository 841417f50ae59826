"""The README's commands and its Python do what it says, at smoke size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from command_line import vitrail
from PIL import Image

ROOT = Path(__file__).parent.parent
SMALL = ["--model", "vit_pico_patch2_8", "--data.img-size", "32"]  # a few seconds a command
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language ("" for plain ones)."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(heading: str) -> list[list[str]]:
    """Every `vitrail ...` of the plain blocks under a heading, as words without the program's name."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", README, flags=re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    said = [part.strip() for line in block.splitlines() for part in line.partition("  #")[0].split("&&")]
    return [shlex.split(words)[1:] for words in said if words.startswith("vitrail ")]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with ./photos in two classes and new/*.jpg."""
    torch.manual_seed(0)
    for name in ("photos/cat", "photos/dog", "new"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photographs")
def test_the_commands_run_in_the_order_they_stand() -> None:
    said = [*commands("Two commands"), *commands("Then, with your photographs")]
    assert [words[0] for words in said] == ["train", "train", "eval", "predict", "explain", "export"]
    for words in said:
        # pathlib is the shell here: what it would expand is expanded
        expanded = [
            found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
        ]
        if words[0] == "train":
            expanded += ["--smoke", *(SMALL if "finetune" in words else [])]
        result = vitrail(*expanded)
        assert result.code == 0, result.err
    assert Path("runs/photos/report.html").stat().st_size > 10_000
    assert len(list(Path("maps").glob("*_rollout.png"))) == 8
    assert Path("photos.onnx").is_file()


@pytest.mark.usefixtures("photographs")
def test_the_ways_to_train_run() -> None:
    said = commands("Ways to train")
    assert [words[0] for words in said] == ["lr-find", *["train"] * 5, "shard", "train", "probe", "ensemble"]
    Path("labels.csv").write_text(
        "path,labels\n" + "".join(f"photos/cat/{k}.jpg,cat{'|red' * (k % 2)}\n" for k in range(8))
    )
    for name, model in (("cnn", "resnet18"), ("a", SMALL[1]), ("b", SMALL[1]), ("c", SMALL[1])):
        out = f"runs/{name}"
        assert vitrail("train", "photos", "--model", model, *SMALL[2:], "--smoke", "--out", out).code == 0
    for words in said:
        if words[0] in ("train", "lr-find"):
            tiny = ["--data.img-size", "32"] if any("deit" in word for word in words) else SMALL
            words += [*tiny, "--smoke"]
            words = [word for word in words if "processes" not in word and word not in ("8", "--max-restarts", "3")]
        if words[0] == "probe":  # official weights are elsewhere
            words = ["probe", SMALL[1], *words[2:-1]]
        result = vitrail(*words)
        assert result.code == 0, (words, result.err)


@pytest.mark.usefixtures("photographs")
def test_the_ways_to_look_run() -> None:
    said = commands("What it has learned, and which model to take")
    assert [words[0] for words in said] == ["explain", "inspect", "robustness", "compare"]
    for name in ("photos", "cnn"):
        assert vitrail("train", "photos", *SMALL, "--smoke", "--out", f"runs/{name}").code == 0
    few = {"inspect": ["--images", "4", "--only", "filters,residual"], "robustness": ["--limit", "2"]}
    for words in said:
        if words[0] == "compare":
            models = "vit_pico_patch2_8,convmixer_128_4_ks3_p4"
            words = [*words[:2], "--models", models, "--img-size", "16", "--epochs", "1"]
        names = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        result = vitrail(*names, *few.get(words[0], []))
        assert result.code == 0, (words, result.err)
    assert len(list(Path("maps").glob("*_relevance.png"))) == 8
    assert Path("inspected/inspection.html").is_file()
    assert Path("comparison/compare.html").is_file()


def test_the_python_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"print\(.*\)  # (.*)", code).group(1)


def test_ci_runs_the_readmes_own_test_command() -> None:
    (two,) = [block for block in blocks("") if "pytest" in block]
    install, test = two.splitlines()[1].split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert install.replace("pip install", "pip install --quiet") + " && " + test in script
    assert len(README.splitlines()) < 150
