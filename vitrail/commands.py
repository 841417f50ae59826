"""The verbs of the command line: each reads its arguments, calls one public function, and shows what it returns."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vitrail import models, recipes
from vitrail.errors import UserError, did_you_mean
from vitrail.recipe import Recipe, smoke

Json = Annotated[
    FlagCreatePairsOff[bool], arg(name="json", help="Print one JSON object on standard output and nothing else.")
]
Pretrained = Annotated[
    FlagCreatePairsOff[bool], arg(name="pretrained", help="Use the official weights of a model's name.")
]
RunName = Annotated[Positional[str], arg(metavar="RUN", help="A run folder, or a model's name.")]
Images = Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...")]
OptionalData = Annotated[Positional[str | None], arg(metavar="[DATA]")]


def run_command(verb: str, arguments: list[str]) -> None:
    """Do what the arguments of `vitrail VERB` say. tyro answers --help and wrong flags, naming the nearest (exit 2)."""
    if verb == "train":
        train(arguments)
    else:
        tyro.cli(COMMANDS[verb], prog=f"vitrail {verb}", args=arguments)


# ---------------------------------------------------------------------- train


def train(arguments: list[str]) -> None:
    """`vitrail train`: the flags are the fields of a recipe, and the recipe that they change is one of the flags."""
    name = _train_arguments(recipes.find_recipe("scratch"), arguments)["recipe"]
    chosen = _train_arguments(recipes.find_recipe(name), arguments)
    from vitrail.verbs import train as train_run

    if chosen["resume"]:
        if chosen["changed"]:
            raise UserError(f"--resume {chosen['resume']} goes on with that run's own recipe; give no other settings")
        folder = train_run(resume=chosen["resume"])
    else:
        folder = train_run(chosen["config"], out=chosen["out"])
    final = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    if chosen["as_json"]:
        _print_json({"run": str(folder), "report": str(folder / "report.html"), **final})
    print(
        f"{final['split']} accuracy {final['top1']:.2%} ({final['n']:,} images)\n"
        f"run      {folder}\n"
        f"report   {folder / 'report.html'}\n"
        f"next     vitrail predict {folder} IMAGE...\n"
        f"         vitrail explain {folder} IMAGE...\n"
        f"         vitrail eval {folder}",
        file=sys.stderr,
    )


def _train_arguments(default: Recipe, arguments: list[str]) -> dict[str, Any]:
    """What the command line of `train` says, where `default` is the recipe that its flags change."""

    def read(
        source: OptionalData = None,
        /,
        *,
        recipe: str | None = None,
        out: str | None = None,
        resume: str | None = None,
        smoke_test: Annotated[FlagCreatePairsOff[bool], arg(name="smoke")] = False,
        as_json: Json = False,
        config: Annotated[Recipe, arg(name="")] = default,
    ) -> dict[str, Any]:
        """Train a model on images; without DATA, on 1,797 real digits, in a minute.

        Args:
            source: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
            recipe: A published way to train (`vitrail recipes`); the flags below change it. Without: quickstart on
                digits, scratch on anything else.
            out: The run folder to make. Without: runs/DATA-MODEL-1.
            resume: Go on with this run folder instead of starting one.
            smoke_test: Try the recipe: the same code on 8 images, two steps.
        """
        changed = bool(source or recipe or out or smoke_test or config != default)
        recipe = recipe or ("quickstart" if (source or config.data.source) == "digits" else "scratch")
        if source is not None:
            config = replace(config, data=replace(config.data, source=source))
        return {
            "recipe": recipe,
            "out": out,
            "resume": resume,
            "as_json": as_json,
            "config": smoke(config) if smoke_test else config,
            "changed": changed,
        }

    said: dict[str, Any] = tyro.cli(read, prog="vitrail train", args=arguments)
    return said


# ---------------------------------------------------------------------- use a run


def evaluate(
    run: RunName,
    data: OptionalData = None,
    /,
    *,
    split: Literal["train", "val", "test"] | None = None,
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Score a run on the images held out of its own data, or on DATA.

    Args:
        data: Another source with the same classes.
        split: Which images. Without: test where there is one, else val.
    """
    from vitrail.training.evaluate import evaluate

    result = evaluate(run, data, split=split, pretrained=pretrained)
    if as_json:
        _print_json(result)
        return
    table = Table("class", "precision", "recall", "F1", "images")
    for row in result["per_class"]:
        table.add_row(row["class"], *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), str(row["n"]))
    _console().print(table)
    _print_damaged(result["damaged"])
    print(
        f"{result['top1']:.2%} of {result['n']:,} {result['split']} images of {result['data']} right "
        f"(top 5: {result['top5']:.2%}, loss {result['loss']:.4f}; {result['weights']})"
    )


def predict(
    run: RunName,
    images: Images,
    /,
    *,
    top: int = 3,
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Classes and probabilities of image files.

    Args:
        images: Files, folders or patterns.
        top: How many classes to name for each image.
    """
    from vitrail.run import load
    from vitrail.training.predict import predict

    if top < 1:
        raise UserError(f"--top is {top}; it must be at least 1")
    opened = load(run, pretrained=pretrained)
    answers = predict(opened, _named(images), top=top)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if as_json:
        _print_json({"run": run, "weights": opened.weights, "predictions": answers})
    elif len(errors) < len(answers):
        table = Table("file", "class", "probability", "then")
        for answer in answers:
            if "error" not in answer:
                rest = ", ".join(f"{other['class']} {other['probability']:.1%}" for other in answer["top"][1:])
                table.add_row(answer["file"], answer["class"], f"{answer['probability']:.1%}", rest)
        _console().print(table)
        print(f"{run}: {opened.weights}", file=sys.stderr)
    if len(errors) == len(answers) == 1:
        raise UserError(errors[0])
    _print_damaged(errors)
    if len(errors) == len(answers):
        raise UserError(f"none of the {len(answers)} files could be read")


def explain(
    run: RunName,
    images: Images,
    /,
    *,
    method: Literal["rollout", "attention", "gradcam"] | None = None,
    out: str = "explanations",
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Pictures of what the model looks at: photograph, map, overlay, predicted class.

    Args:
        images: Files, folders or patterns.
        method: Without: rollout where the model has attention, gradcam where it has none.
        out: The folder for the PNG files.
    """
    from vitrail.interpretability.explain import explain
    from vitrail.run import load

    opened = load(run, pretrained=pretrained)
    results = explain(opened, _named(images), method=method, out=Path(out))
    rows = [
        {
            "file": str(result.file),
            "class": result.predicted,
            "probability": result.probability,
            "method": result.method,
            "picture": str(result.picture),
        }
        for result in results
    ]
    if as_json:
        _print_json({"run": run, "weights": opened.weights, "explanations": rows})
    else:
        for row in rows:
            print(f"{row['picture']}  {row['class']} {row['probability']:.1%} ({row['method']})")
        print(f"{run}: {opened.weights}", file=sys.stderr)


def export(
    run: RunName, out: Annotated[Positional[Path], arg(metavar="OUT")], /, *, pretrained: Pretrained = False
) -> None:
    """Write a model to a file that other programs read; it is reloaded and compared before it is kept.

    Args:
        out: A file ending in .safetensors, .onnx or .pt2.
    """
    from vitrail.formats import export
    from vitrail.run import load

    print(export(load(run, pretrained=pretrained), out))


# ---------------------------------------------------------------------- architectures and recipes


def list_models(
    pattern: Annotated[Positional[str], arg(metavar="[PATTERN]")] = "*", /, *, as_json: Json = False
) -> None:
    """Every architecture that matches, with the figures its paper or release prints.

    Args:
        pattern: Shell wildcards; without one, any name that contains it.
    """
    rows = models.summaries(pattern)
    if not rows:
        raise UserError(f"no model matches '{pattern}'{did_you_mean(pattern, models.list_models())}")
    if as_json:
        _print_json({"models": rows})
        return
    table = Table(Column("name", no_wrap=True), "params", "FLOPs", "top-1", "paper")
    for row in rows:
        table.add_row(*(row.get(key, "") for key in ("name", "params", "FLOPs", "top-1")), row["paper"])
    _console().print(table)
    print(f"{len(rows)} names", file=sys.stderr)


def show(name: Annotated[Positional[str], arg(metavar="NAME")], /, *, as_json: Json = False) -> None:
    """One architecture: its paper, what differs, its settings, its printed figures, where its weights live.

    Args:
        name: A name from `vitrail models`, or ./my_file.py:name.
    """
    about = models.describe(name)
    if as_json:
        _print_json(about)
        return
    print(about["about"])
    for key in ("file", "config", "printed", "weights"):
        print(f"{key:<9}{about[key]}")


def list_recipes(*, as_json: Json = False) -> None:
    """The published ways to train, one line each."""
    known = recipes.list_recipes()
    if as_json:
        _print_json({"recipes": known})
        return
    for name, about in known.items():
        print(f"{name:<22}{about}")


def copy(
    family: Annotated[Positional[str], arg(metavar="FAMILY")], file: Annotated[Positional[Path], arg(metavar="FILE")], /
) -> None:
    """Copy an architecture's file, to change it and train it.

    Args:
        family: A file of vitrail/models without its ending, such as vit.
        file: Where to, such as my_vit.py.
    """
    source = models.FOLDER / f"{family}.py"
    named = models.list_models()
    stems = sorted(path.stem for path in models.FOLDER.glob("[a-z]*.py"))
    known = [stem for stem in stems if any(name.startswith(stem) for name in named)]
    if family not in known:
        raise UserError(f"no family '{family}'{did_you_mean(family, known)}; there are {', '.join(known)}")
    if file.suffix != ".py":
        raise UserError(f"{file} would be no Python file; end its name in .py")
    if file.exists():
        raise UserError(f"{file} exists; name another file")
    try:
        shutil.copyfile(source, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another folder") from error
    print(f"{file}: change it, then `vitrail train DATA --model {file}:NAME` with a NAME from its VARIANTS")


# ---------------------------------------------------------------------- data


def doctor(
    data: Annotated[Positional[str], arg(metavar="DATA")], /, *, out: Path = Path("doctor.json"), as_json: Json = False
) -> None:
    """Scan a set of images for damaged, odd, duplicate and misnamed files, and count its classes.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        out: Where the findings are written as JSON.
    """
    from vitrail.checkpoint import write_file
    from vitrail.data.doctor import doctor, print_findings

    findings = doctor(data)
    write_file(out, json.dumps(findings, ensure_ascii=False, indent=1) + "\n")
    if as_json:
        _print_json(findings)
    else:
        print_findings(findings, _console())
    print(f"written to {out}", file=sys.stderr)


def show_batch(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    recipe: str | None = None,
    out: Path = Path("batch.png"),
) -> None:
    """A picture of an augmented batch, to see what a model will see.

    Args:
        data: digits, a folder, cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards.
        recipe: Whose augmentation. Without: what `vitrail train DATA` would use.
        out: The PNG file to write.
    """
    from vitrail.data.show import show_batch

    chosen = recipes.find_recipe(recipe or ("quickstart" if data == "digits" else "scratch"))
    img_size = chosen.data.img_size or models.describe(chosen.model)["config"]["img_size"]
    print(show_batch(data, out, augment=chosen.augment, img_size=img_size, interpolation=chosen.data.interpolation))


def _named(images: tuple[str, ...]) -> list[Path]:
    """The files that IMAGE... names."""
    from vitrail.data.files import find_images

    found = find_images(images)
    if not found:
        raise UserError(f"{' '.join(images) or 'IMAGE...'} names no image; give files, folders or patterns")
    return found


def _console() -> Console:
    """Standard output for tables of users' own words, which are no markup. A pipe has no width to wrap at."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _print_damaged(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"left out: {sentence}", file=sys.stderr)


COMMANDS: dict[str, Callable[..., None]] = {
    "eval": evaluate,
    "predict": predict,
    "explain": explain,
    "export": export,
    "models": list_models,
    "show": show,
    "recipes": list_recipes,
    "doctor": doctor,
    "show-batch": show_batch,
    "copy": copy,
}
