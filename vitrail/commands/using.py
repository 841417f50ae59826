"""The verbs that use a run, or a model by its name: eval, predict, explain, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

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

Optimize = Annotated[
    Literal["fp32", "bf16", "int8"] | None,
    arg(help="Compute with the fastest engine of this machine, no coarser than this; worth it for many images."),
]


def evaluate(
    run: RunName,
    data: OptionalData = None,
    /,
    *,
    split: Literal["train", "val", "test"] | None = None,
    pretrained: Pretrained = False,
    optimize: Optimize = None,
    as_json: Json = False,
) -> None:
    """Score a run on the images held out of its own data, or on DATA.

    Args:
        data: Another source with the same classes.
        split: Which images. Without: test where there is one, else val.
    """
    from vitrail.training.evaluate import evaluate

    result = evaluate(run, data, split=split, pretrained=pretrained, optimize=optimize)
    if as_json:
        print_json(result)
        return
    if "per_class" in result:
        _print_classes(result["per_class"])
    print_damaged(result["damaged"])
    print(_outcome(result))


def _print_classes(rows: list[dict[str, Any]]) -> None:
    heads = {"average_precision": "average precision", "precision": "precision", "recall": "recall", "f1": "F1"}
    keys = [key for key in heads if key in rows[0]]
    table = Table("class", *(heads[key] for key in keys), "images")
    for row in rows:
        cells = ["none" if row[key] is None else f"{row[key]:.3f}" for key in keys]
        table.add_row(row["class"], *cells, str(row["n"]))
    console().print(table)


def _outcome(result: dict[str, Any]) -> str:
    """What a score comes to, in a sentence."""
    metric, images = result["metric"], f"{result['n']:,} {result['split']} images of {result['data']}"
    rest = f"loss {result['loss']:.4f}; {result['weights']}"
    if metric == "top1":
        balanced, error = result["balanced_accuracy"], result["calibration_error"]
        also = f"top 5: {result['top5']:.2%}, balanced: {balanced:.2%}, calibration error {error:.3f}"
        return f"{result['top1']:.2%} of {images} right ({also}, {rest})"
    if metric == "map":
        also = f"F1 at 0.5: {result['macro_f1']:.3f} over classes, {result['micro_f1']:.3f} over labels"
        return f"mean average precision {result['map']:.2%} on {images} ({also}, {rest})"
    patches = f"{result['patches']:,} corrupted patches of {images}"
    if metric == "patch_accuracy":
        return f"{result['patch_accuracy']:.2%} of {patches} right (commonest colour: {result['baseline']:.2%}, {rest})"
    return f"{result['patch_r2']:.2%} of the variance of {patches} explained ({rest})"


def predict(
    run: RunName,
    images: Images,
    /,
    *,
    top: int = 3,
    pretrained: Pretrained = False,
    optimize: Optimize = None,
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
    answers = predict(opened, named(images), top=top, optimize=optimize)
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
    method: Literal["rollout", "attention", "relevance", "attention-gradient", "gradcam", "features"] | None = None,
    layer: Annotated[int | Literal["all"] | None, arg(metavar="N|all")] = None,
    query: Annotated[str | None, arg(metavar="R,C")] = None,
    target: Annotated[str | None, arg(metavar="CLASS")] = None,
    out: str = "explanations",
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Pictures of what the model looks at: photograph, map, overlay, predicted class.

    Args:
        images: Files, folders or patterns.
        method: Without: rollout where the model has attention, gradcam where it has none.
        layer: Of attention and features: which block, negative from the top; attention shows "all" side by side.
        query: Of attention: row and column of the patch that asks, instead of the class token.
        target: Of gradcam, relevance and attention-gradient: another class than the predicted one, name or number.
        out: The folder for the PNG files.
    """
    from vitrail.interpretability.explain import explain
    from vitrail.run import load

    asks = _row_and_column(query)
    opened = load(run, pretrained=pretrained)
    results = explain(opened, named(images), method=method, layer=layer, query=asks, target=target, out=Path(out))
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


def _row_and_column(query: str | None) -> tuple[int, int] | None:
    """What --query says."""
    if query is None:
        return None
    row, _, column = query.partition(",")
    if row.strip().isdecimal() and column.strip().isdecimal():
        return int(row), int(column)
    raise UserError(f"--query is '{query}'; give the row and the column of a patch, counted from 0, such as 4,7")


def export(
    run: RunName,
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    int8: Annotated[tuple[str, ...], arg(metavar="IMAGE...")] = (),
    pretrained: Pretrained = False,
) -> None:
    """Write a model to a file that other programs read; it is reloaded and compared before it is kept.

    Args:
        out: A file ending in .safetensors, .onnx, .pt2 or .xml (OpenVINO).
        int8: Images, a hundred or so, by which an .xml is scaled to int8. Without: float32.
    """
    from vitrail.formats import export
    from vitrail.run import load

    print(export(load(run, pretrained=pretrained), out, int8=named(int8) if int8 else None))
