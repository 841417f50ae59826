"""The verbs that use a run, or a model by its name: eval, predict, explain, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from vitrail.commands.say import (
    Images,
    Json,
    OptionalData,
    Pretrained,
    RunName,
    console,
    named,
    print_damaged,
    print_json,
)
from vitrail.errors import UserError


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
        print_json(result)
        return
    table = Table("class", "precision", "recall", "F1", "images")
    for row in result["per_class"]:
        table.add_row(row["class"], *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), str(row["n"]))
    console().print(table)
    print_damaged(result["damaged"])
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
    answers = predict(opened, named(images), top=top)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if as_json:
        print_json({"run": run, "weights": opened.weights, "predictions": answers})
    elif len(errors) < len(answers):
        table = Table("file", "class", "probability", "then")
        for answer in answers:
            if "error" not in answer:
                rest = ", ".join(f"{other['class']} {other['probability']:.1%}" for other in answer["top"][1:])
                table.add_row(answer["file"], answer["class"], f"{answer['probability']:.1%}", rest)
        console().print(table)
        print(f"{run}: {opened.weights}", file=sys.stderr)
    if len(errors) == len(answers) == 1:
        raise UserError(errors[0])
    print_damaged(errors)
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
    results = explain(opened, named(images), method=method, out=Path(out))
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
        print_json({"run": run, "weights": opened.weights, "explanations": rows})
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
