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


def commands() -> list[list[str]]:
    """Every `vitrail ...` line of the plain blocks, as words without the program's name."""
    lines = [line.rpartition("&& ")[2].partition("#")[0] for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vitrail ")]


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
    said = commands()
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
