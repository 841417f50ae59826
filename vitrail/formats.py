"""Run -> a file for elsewhere: safetensors, ONNX, torch.export (.pt2), OpenVINO (.xml). Reloaded, compared, then kept.

The exported graph takes normalised images (B, C, S, S), any B, and gives logits (B, K). Class names and what is needed
to prepare an image travel inside every format, as text: `describe_inputs` says which keys.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.engines import graph, onnxruntime, openvino
from vitrail.engines.engine import Engine, Forward
from vitrail.engines.examples import examples_of_files
from vitrail.errors import UserError, did_you_mean
from vitrail.run import Run, load

TOLERANCE = 1e-4
AGREEMENT = 0.99
SIDECARS = {".xml": (".bin",)}
ONNX_LIMIT = 2_000_000_000  # bytes: protobuf ends at 2 GiB


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    pretrained: bool = False,
    int8: Iterable[str | Path] | None = None,
) -> Path:
    """Write the model of `run` (a Run, a run folder or a model's name) to `out`: .safetensors, .onnx, .pt2 or .xml.

    A name alone means random weights unless `pretrained`. The file is written beside `out`, loaded again and compared
    with the model on a batch of 2 and a batch of 1; only then it takes its name (an .xml, OpenVINO's, with its weights
    in the .bin beside it). `int8` names image files, a hundred or so, by which an .xml is scaled to int8. Raises
    UserError for another ending, a folder that cannot be written, a missing package, and when the file does not give
    the model's logits within a relative error of 1e-4, in int8 the classes of 99 % of the images (it is then removed).
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        hint = did_you_mean(out.suffix, FORMATS)
        raise UserError(f"cannot tell the format of '{out.name}': end the name in one of {known}{hint}")
    if int8 is not None and out.suffix != ".xml":
        raise UserError(
            f"'{out.name}' cannot be in int8; end the name in .xml, which is OpenVINO's, or leave int8 away"
        )
    run = load(run, pretrained=pretrained)
    model = copy.deepcopy(run.model).cpu().eval()
    images = torch.randn(2, *_input_shape(run), generator=torch.Generator().manual_seed(0))
    write, read = FORMATS[out.suffix]
    if int8 is not None:
        images = examples_of_files(run, int8)
        write = partial(_write_openvino, int8=True)
    with _beside(out) as temporary:
        write(model, images, describe_inputs(run), temporary)
        reloaded = read(model, temporary)
        found = _kept_classes(model, reloaded, images) if int8 is not None else _same_logits(model, reloaded, images)
        if found.wrong:
            raise UserError(f"{out} was not kept: {found.wrong}")
    logging.getLogger("vitrail").warning("%s: loaded again, %s", out, found.said)
    return out


def describe_inputs(run: Run) -> dict[str, str]:
    """What every exported file carries, as text: model, interpolation, and as JSON classes, img_size, in_chans, mean,
    std, crop_pct."""
    data = run.recipe.data
    values = {
        "model": run.recipe.model,
        "classes": run.classes,
        "img_size": data.img_size,
        "in_chans": data.in_chans,
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _input_shape(run: Run) -> tuple[int, int, int]:
    data = run.recipe.data
    if data.img_size is None or data.in_chans is None:
        raise UserError(
            "export: the recipe is not resolved: data.img_size and in_chans must be set; load it from a run"
        )
    return data.in_chans, data.img_size, data.img_size


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary file in the folder of `out` that takes its name at the end, or vanishes when anything fails."""
    try:
        descriptor, name = tempfile.mkstemp(suffix=out.suffix, prefix=".vitrail-", dir=out.parent)
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror}); choose a folder that exists and is yours") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        for suffix in sorted({out.suffix, *SIDECARS.get(out.suffix, ())}):  # the file itself last, if it has a sidecar
            temporary.with_suffix(suffix).chmod(0o644)
            temporary.with_suffix(suffix).replace(out.with_suffix(suffix))
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror or error})") from None
    finally:
        for suffix in {out.suffix, *SIDECARS.get(out.suffix, ())}:
            temporary.with_suffix(suffix).unlink(missing_ok=True)


class _Found(NamedTuple):
    """What a comparison found, in words: for a file that is kept, and why it is not."""

    said: str
    wrong: str


def _same_logits(model: nn.Module, reloaded: Forward, images: Tensor) -> _Found:
    """By the largest difference of logits over the largest logit, in batches of 2 and of 1."""
    worst = 0.0
    with torch.no_grad():
        for batch in (images[:2], images[:1]):
            expected, given = model(batch), reloaded(batch)
            if given.shape != expected.shape:
                worst = float("inf")
                break
            error = (given - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
            worst = max(worst, float(error.nan_to_num(float("inf"))))
    wrong = (
        f"loaded again, its logits differ from the model's by {worst:.1e} (relative), and {TOLERANCE:.0e} is allowed; "
        "try another format"
    )
    return _Found(f"its logits differ by {worst:.1e} (relative)", "" if worst < TOLERANCE else wrong)


def _kept_classes(model: nn.Module, reloaded: Forward, images: Tensor) -> _Found:
    """By the share of the images whose likeliest class is the model's."""
    with torch.no_grad():
        same = [bool((model(image).argmax() == reloaded(image).argmax()).item()) for image in images.split(1)]
    share = sum(same) / len(same)
    wrong = f"{share:.1%} of {len(same)} images keep their class, and {AGREEMENT:.0%} must; leave int8 away"
    return _Found(f"{share:.1%} of {len(same)} images keep their class", "" if share >= AGREEMENT else wrong)


def _write_safetensors(model: nn.Module, _images: Tensor, about: dict[str, str], path: Path) -> None:
    from safetensors.torch import save_file

    # clones: safetensors refuses two names for one memory
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt", **about})


def _read_safetensors(model: nn.Module, path: Path) -> Forward:
    from safetensors.torch import load_file

    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():  # nothing of the original may stand in for what the file lacks
        parameter.data.fill_(float("nan"))
    fresh.load_state_dict(load_file(path), strict=True)
    return fresh


def _write_pt2(model: nn.Module, images: Tensor, about: dict[str, str], path: Path) -> None:
    torch.export.save(graph.exported(model, images), path, extra_files={"vitrail.json": json.dumps(about)})


def _read_pt2(_model: nn.Module, path: Path) -> Forward:
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, images: Tensor, about: dict[str, str], path: Path) -> None:
    _require(onnxruntime.ENGINE, "export")
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > ONNX_LIMIT:
        raise UserError(f"{size / 1e9:.1f} GB do not fit into one ONNX file (2 GB); export to .pt2 or .safetensors")
    program = graph.onnx(model, images)
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def _read_onnx(_model: nn.Module, path: Path) -> Forward:
    return onnxruntime.runner(path)


def _write_openvino(model: nn.Module, images: Tensor, about: dict[str, str], path: Path, *, int8: bool = False) -> None:
    _require(openvino.INT8 if int8 else openvino.ENGINE, "fast")
    openvino.write(model, images, about, path, int8=int8)


def _read_openvino(_model: nn.Module, path: Path) -> Forward:
    return openvino.read(path)


def _require(engine: Engine, extra: str) -> None:
    """Raises UserError where a package of the engine is missing."""
    if missing := engine.missing():
        raise UserError(f"{engine.name} needs the package {', '.join(missing)}: pip install 'vitrail[{extra}]'")


FORMATS = {
    ".safetensors": (_write_safetensors, _read_safetensors),
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
    ".xml": (_write_openvino, _read_openvino),
}
