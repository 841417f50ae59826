"""Every mistake is one sentence on standard error that says what, where and what to do; nothing is left behind.

All commands run in one folder, the desk, where a finished run and several kinds of broken data lie.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import tiny_run, vitrail
from PIL import Image

PICO = ["--model", "vit_pico_patch4_32"]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    for name in "ab":
        for number in range(4):
            picture(desk / "two" / name / f"{number}.png")
    picture(desk / "one" / "a" / "0.png")
    picture(desk / "one" / "a" / "1.png")
    shutil.copytree(desk / "two", desk / "empty")
    (desk / "empty" / "c").mkdir()
    shutil.copytree(desk / "two", desk / "lacks" / "train")
    shutil.copytree(desk / "two", desk / "lacks" / "val")
    picture(desk / "lacks" / "val" / "z" / "0.png")
    for name in "abcdefghij":
        picture(desk / "letters" / name / "0.png")
        picture(desk / "letters" / name / "1.png")
    picture(desk / "x.png")
    (desk / "bare").mkdir()
    (desk / "text.jpg").write_text("not a picture")
    (desk / "half.png").write_bytes((desk / "x.png").read_bytes()[:50])
    (desk / "notes.txt").write_text("no data")
    (desk / "plain.py").write_text("x = 1\n")
    tiny_run(desk / "run")
    return desk


@pytest.fixture(autouse=True)
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)


WRONG_COMMANDS = [
    (["trian"], "no command 'trian'; did you mean 'train'?"),
    (["--hlep"], "did you mean '--help'?"),
    (["frobnicate"], "`vitrail --help` lists them"),
]
WRONG_FLAGS = [
    (["train", "--epochs", 3], "--schedule.epochs"),
    (["train", "--schedule.epoch", 3], "--schedule.epochs"),
    (["train", "--modle", "resnet18"], "--model"),
    (["train", "--schedule.epochs", "many"], "--schedule.epochs"),
    (["models", "--jsn"], "--json"),
    (["eval", "run", "--split", "tests"], "'test'"),
    (["explain", "run", "x.png", "--method", "rolout"], "'rollout'"),
    (["predict"], "RUN"),
    (["show"], "NAME"),
]
MISTAKES = [
    # data
    (["train", "two_", *PICO], "'two_' is no data source"),
    (["train", "./two_", *PICO], "no file or folder ./two_; did you mean 'two'?"),
    (["train", "nowhere/two", *PICO], "the folder nowhere does not exist"),
    (["train", "cifar11", *PICO], "did you mean 'cifar10'?"),
    (["train", "notes.txt", *PICO], "notes.txt is a file of a kind that is no source"),
    (["train", "bare", *PICO], "bare has no class folders; put the pictures of each class in a folder"),
    (["train", "empty", *PICO], "class folder 'c' in empty has no pictures; add some or remove the folder"),
    (["train", "one", *PICO], "one has one class only ('a'); at least two are needed"),
    (["train", "lacks", *PICO], "val has class 'z', which train lacks"),
    (["train", "letters", *PICO, "--data.val-fraction", 1.5], "it must lie between 0 and 1"),
    (["doctor", "two_"], "'two_' is no data source"),
    (["show-batch", "two_"], "'two_' is no data source"),
    # recipe and model
    (["train", "two", "--recipe", "deiit"], "no recipe 'deiit'; did you mean 'deit'?"),
    (["show-batch", "two", "--recipe", "deiit"], "no recipe 'deiit'; did you mean 'deit'?"),
    (["train", "two", "--model", "vit_pico_patch4_31"], "did you mean 'vit_pico_patch4_32'?"),
    (["train", "two", "--model", "wit_tiny"], "no model 'wit_tiny'"),
    (["train", "two", "--model", "./gone.py:my"], "gone.py'; give ./file.py:name"),
    (["train", "two", "--model", "./plain.py:my"], "plain.py is not a model file: it lacks VARIANTS or Model"),
    (["train", "two", *PICO, "--data.img-size", 33], "img_size 33x33 is not divisible by the patch size 4"),
    (["train", "two", "--model", "alexnet", "--data.img-size", 32, "--drop-path", 0], "the smallest size is 63"),
    (["train", *PICO, "--initial-checkpoint", "run/model.safetensors"], "does not fit vit_pico_patch4_32"),
    (["train", "--initial-checkpoint", "gone.pth"], "no weights file 'gone.pth'"),
    (["train", "--initial-checkpoint", "notes.txt"], "notes.txt' is not a weights file by its name"),
    (["show", "vit_tiny_patch16_225"], "did you mean 'vit_tiny_patch16_224'?"),
    (["show", "nonsense"], "`vitrail models` lists all names"),
    (["models", "zzz"], "no model matches 'zzz'"),
    (["models", "vit_tiny_patch16_225"], "did you mean 'vit_tiny_patch16_224'?"),
    (["copy", "vitt", "new.py"], "no family 'vitt'; did you mean 'vit'?"),
    (["copy", "torchvision_cnn", "new.py"], "no family 'torchvision_cnn'"),
    (["copy", "vit", "plain.py"], "plain.py exists; name another file"),
    (["copy", "vit", "new"], "end its name in .py"),
    (["copy", "vit", "nowhere/new.py"], "cannot write nowhere/new.py: No such file or directory"),
    # numbers
    (["train", "--data.batch-size", 0], "--data.batch-size is 0; it must be 1 or more"),
    (["train", "--data.limit", 0], "--data.limit is 0; it must be 1 or more"),
    (["train", "--data.img-size", -8], "--data.img-size is -8; it must be 1 or more"),
    (["train", "--data.in-chans", 0], "--data.in-chans is 0; it must be 1 or more"),
    (["train", "--data.workers", -1], "--data.workers is -1; it must be 0 or more"),
    (["train", "--schedule.epochs", 0], "--schedule.epochs is 0; it must be 1 or more"),
    (["train", "--schedule.epochs", -2], "--schedule.epochs is -2; it must be 1 or more"),
    (["train", "--optim.lr", -1], "--optim.lr is -1.0; it must be 0 or more"),
    (["train", "--optim.lr", "nan"], "--optim.lr is nan; it must be 0 or more"),
    (["train", "--optim.lr-batch", 0], "--optim.lr-batch is 0; it must be 1 or more"),
    (["train", "--optim.accumulate", 0], "--optim.accumulate is 0; it must be 1 or more"),
    (["train", "--ema", 1], "--ema is 1.0; it must be 0 or more and below 1"),
    (["train", "--drop-path", 1], "--drop-path is 1.0; it must be 0 or more and below 1"),
    (["train", "--seed", -1], "--seed is -1; it must be 0 or more"),
    (["train", "--augment.flip", 2], "augment.flip is 2.0; a probability lies between 0 and 1"),
    (["train", "--data.mean", 0.5, 0.5], "need one positive deviation for every mean"),
    (["train", "--data.crop-pct", 0], "crop_pct is 0.0; it must lie above 0"),
    (["predict", "run", "x.png", "--top", 0], "--top is 0; it must be at least 1"),
    # runs
    (["train", "--out", "run"], "run already holds a run; continue it with --resume run, or choose another --out"),
    (["train", "--out", "x.png"], "cannot make the folder x.png: File exists; choose another --out"),
    (["train", "--out", "x.png/run"], "cannot make the folder x.png/run: Not a directory"),
    (
        ["train", "--resume", "run", "--seed", 1],
        "--resume run goes on with that run's own recipe; give no other settings",
    ),
    (["train", "digits", "--resume", "run"], "give no other settings"),
    (["train", "--resume", "run", "--out", "else"], "give no other settings"),
    (["train", "--resume", "run", "--smoke"], "give no other settings"),
    (["train", "--resume", "two"], "two is not a run folder: it has no recipe.json"),
    (["train", "--resume", "gone"], "gone is not a run folder"),
    (["eval", "runn"], "'runn' is neither a run folder nor a model"),
    (["eval", "two"], "two is not a run folder: it has no recipe.json"),
    (["eval", "resnet19"], "did you mean 'resnet1"),
    (["eval", "resnet18"], "resnet18 is a model, not a run: name the DATA to score it on"),
    (["eval", "run", "two"], "two has 2 classes and the model 10"),
    (["eval", "run", "letters"], "the class 'a' of letters is not one of the model's"),
    (["eval", "run", "nowhere"], "'nowhere' is no data source"),
    (["eval", "run", "--split", "val"], "digits has no split 'val'; it has train, test"),
    (["export", "run", "m.xyz"], "end the name in one of .safetensors, .onnx, .pt2"),
    (["export", "run", "m.onx"], "did you mean '.onnx'?"),
    (["export", "run", "nowhere/m.safetensors"], "cannot write 'nowhere/m.safetensors'"),
    (["doctor", "two", "--out", "nowhere/d.json"], "cannot write nowhere/d.json"),
    (["show-batch", "two", "--out", "x.png/b.png"], "x.png/b.png"),
    (["explain", "run", "x.png", "--out", "text.jpg"], "cannot make the folder 'text.jpg'"),
    (["explain", "resnet18", "x.png", "--method", "rollout", "--out", "new"], "gradcam"),
    # images
    *(
        ([verb, "run", *images], words)
        for verb in ("predict", "explain")
        for images, words in (
            ([], "names no image; give files, folders or patterns"),
            (["y.png"], "no file, folder or pattern 'y.png'; did you mean 'x.png'?"),
            (["*.bmp"], "no file, folder or pattern '*.bmp'"),
            (["bar*"], "bar* names no image"),
            (["bare"], "the folder bare holds no image"),
            (["text.jpg"], "cannot read image text.jpg: it is text, not a picture"),
            (["half.png"], "cannot read image half.png: the file is truncated"),
        )
    ),
    (["explain", "run", "text.jpg", "half.png"], "half.png: the file is truncated"),
]


def files(folder: Path) -> dict[Path, int]:
    """When each was last changed; what Python itself keeps of a module beside it is no matter."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path: path.stat().st_mtime_ns for path in found}


def name_of(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else ""


@pytest.mark.parametrize(("words", "sentence"), WRONG_COMMANDS, ids=name_of)
def test_a_wrong_command(words: list[object], sentence: str) -> None:
    said = vitrail(*words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("vitrail: ")
    assert sentence in said.err


@pytest.mark.parametrize(("words", "offered"), WRONG_FLAGS, ids=name_of)
def test_a_wrong_flag(words: list[object], offered: str, desk: Path) -> None:
    """tyro answers, in a box: what is wrong, and the nearest flag with its help."""
    before = sorted(desk.iterdir())
    said = vitrail(*words)
    assert (said.code, said.out) == (2, "")
    assert offered in said.err
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=name_of)
def test_a_mistake(words: list[object], sentence: str, desk: Path) -> None:
    before = files(desk)
    said = vitrail(*words)
    assert said.code == 1, said
    assert said.out == ""
    assert sentence in said.err
    assert said.err.startswith("vitrail: ")
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1, "one sentence, on one line"
    assert files(desk) == before, "nothing is made, nothing is lost"


def test_images_none_of_which_can_be_read() -> None:
    said = vitrail("predict", "run", "text.jpg", "half.png", "--json")
    assert said.code == 1
    assert [sorted(answer) for answer in said.json()["predictions"]] == [["error", "file"]] * 2
    assert said.err.splitlines()[-1] == "vitrail: none of the 2 files could be read"
    assert [line.split(":")[0] for line in said.err.splitlines()[:-1]] == ["left out"] * 2


def test_channels_that_the_images_do_not_have() -> None:
    said = vitrail("train", "two", *PICO, "--data.in-chans", 2, "--data.workers", 0, "--out", "two-channels")
    assert said.code == 1
    assert said.err.splitlines()[-1] == "vitrail: an image has 3 channels and the model takes 2; set in_chans"


def test_a_cnn_takes_the_default_recipe() -> None:
    """Which asks for stochastic depth; a network without it says that it goes without."""
    said = vitrail("train", "two", "--model", "resnet18", "--smoke", "--data.img-size", 32, "--out", "cnn")
    assert said.code == 0, said.err
    assert "drop_path" in said.err
