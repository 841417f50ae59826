"""OpenVINO: a compiler for Intel's and ARM's processors, with weights reordered once and int8 by calibration (NNCF)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch
from vitrail.engines.graph import exported


def imported(package: str) -> Any:
    """`openvino` or `nncf`, imported as where openvino_telemetry is not installed.

    With it, each call tells the makers of use, from a process of its own that imports all that this one has imported:
    nobody has asked for that, and what is timed meanwhile takes several times as long.
    """
    telemetry = "openvino_telemetry"
    if telemetry in sys.modules:  # imported by somebody else, who may want it
        return importlib.import_module(package)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # so Python marks what is not to be had
    try:
        return importlib.import_module(package)
    finally:
        del sys.modules[telemetry]


def build(model: nn.Module, examples: Tensor, batch_size: int, precision: Precision) -> Forward:
    """See Engine."""
    images = one_batch(examples, batch_size)
    graph = imported("openvino").convert_model(model, example_input=images, input=[list(images.shape)])
    if precision == "int8":
        graph = quantised(graph, examples, batch_size)
    return runner(graph, precision)


def quantised(graph: Any, examples: Tensor, batch_size: int) -> Any:
    """The graph with int8 matrix products, scaled by what `examples` (N, C, H, W) show.

    All but the first and the last: between pixels and logits these matter most, and they are little of the work.
    """
    nncf = imported("nncf")
    batches = [one_batch(batch, batch_size).numpy() for batch in examples.split(batch_size)]
    products = [op for op in graph.get_ordered_ops() if op.get_type_name() in ("Convolution", "MatMul")]
    ends = {op.get_friendly_name() for op in (*products[:1], *products[-1:])}
    fine = nncf.IgnoredScope(names=sorted(ends))
    return nncf.quantize(graph, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, ignored_scope=fine)


def write(model: nn.Module, images: Tensor, about: dict[str, str], path: Path, *, int8: bool) -> None:
    """The model for any batch as OpenVINO's files, `path` and a .bin beside it, with `about` as text inside."""
    openvino = imported("openvino")
    graph = openvino.convert_model(exported(model, one_batch(images, 2)))
    if int8:
        graph = quantised(graph, images, 1)
    for key, value in about.items():
        graph.set_rt_info(value, ["vitrail", key])
    openvino.save_model(graph, path, compress_to_fp16=False)


def read(path: Path) -> Forward:
    """What `write` wrote, as a function of any batch."""
    return runner(imported("openvino").Core().read_model(path), "fp32")


def runner(graph: Any, precision: Precision) -> Forward:
    """The graph as a function, on as many threads as torch uses."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = imported("openvino").compile_model(graph, "CPU", settings).create_infer_request()

    def forward(images: Tensor) -> Tensor:
        outputs = request.infer([images.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0]).clone()  # the memory is the next pass's

    return forward


ENGINE = Engine("OpenVINO", ("openvino",), ("fp32", "bf16"), ("cpu",), build)
INT8 = Engine("OpenVINO", ("openvino", "nncf"), ("int8",), ("cpu",), build)
