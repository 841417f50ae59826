"""Run -> one file for elsewhere: safetensors (weights), ONNX, torch.export (.pt2). Reloaded and compared, then kept.

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
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.errors import UserError, did_you_mean
from vitrail.layers.attention import probing
from vitrail.run import Run, load

TOLERANCE = 1e-4
ONNX_LIMIT = 2_000_000_000  # bytes: protobuf ends at 2 GiB

Forward = Callable[[Tensor], Tensor]


def export(run: Run | str | Path, out: str | Path, *, pretrained: bool = False) -> Path:
    """Write the model of `run` (a Run, a run folder or a model's name) to `out`: .safetensors, .onnx or .pt2.

    A name alone means random weights unless `pretrained`. The file is written beside `out`, loaded again and compared
    with the model on a batch of 2 and a batch of 1; only then it takes its name. Raises UserError for another ending,
    a folder that cannot be written, a missing package, and when the file does not give the model's logits within a
    relative error of 1e-4 (it is then removed).
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        hint = did_you_mean(out.suffix, FORMATS)
        raise UserError(f"cannot tell the format of '{out.name}': end the name in one of {known}{hint}")
    run = load(run, pretrained=pretrained)
    model = copy.deepcopy(run.model).cpu().eval()
    images = torch.randn(2, *_input_shape(run), generator=torch.Generator().manual_seed(0))
    write, read = FORMATS[out.suffix]
    with _beside(out) as temporary:
        write(model, images, describe_inputs(run), temporary)
        error = _relative_error(model, read(model, temporary), images)
        if not error < TOLERANCE:
            raise UserError(
                f"{out} was not kept: loaded again, its logits differ from the model's by {error:.1e} "
                f"(relative), and {TOLERANCE:.0e} is allowed; try another format"
            )
    logging.getLogger("vitrail").warning("%s: loaded again, its logits differ by %.1e (relative)", out, error)
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
        temporary.chmod(0o644)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _relative_error(model: nn.Module, reloaded: Forward, images: Tensor) -> float:
    """Largest difference of logits over the largest logit, in batches of 2 and of 1."""
    worst = 0.0
    with torch.no_grad():
        for batch in (images, images[:1]):
            expected, given = model(batch), reloaded(batch)
            if given.shape != expected.shape:
                return float("inf")
            error = (given - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
            worst = max(worst, float(error.nan_to_num(float("inf"))))
    return worst


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


def _graph(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    # strict: the lenient tracer takes len(x) for a constant, and the batch would be fixed
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=True)


def _write_pt2(model: nn.Module, images: Tensor, about: dict[str, str], path: Path) -> None:
    torch.export.save(_graph(model, images), path, extra_files={"vitrail.json": json.dumps(about)})


def _read_pt2(_model: nn.Module, path: Path) -> Forward:
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, images: Tensor, about: dict[str, str], path: Path) -> None:
    _require_onnx()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > ONNX_LIMIT:
        raise UserError(f"{size / 1e9:.1f} GB do not fit into one ONNX file (2 GB); export to .pt2 or .safetensors")
    with probing(_unchanged):  # somebody watches, so attention is spelt out: ONNX has no fused one for every bias
        program = torch.onnx.export(
            _graph(model, images),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
        )
    assert program is not None  # always, with dynamo=True
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def _unchanged(_site: nn.Module, weights: Tensor) -> Tensor:
    return weights


def _read_onnx(_model: nn.Module, path: Path) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'vitrail[export]'") from None


FORMATS = {
    ".safetensors": (_write_safetensors, _read_safetensors),
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
}
