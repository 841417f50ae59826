"""ONNX Runtime: the model as an ONNX graph; int8 with weights quantised once and activations as they come."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch
from vitrail.engines.graph import onnx


def build(model: nn.Module, examples: Tensor, _batch_size: int, precision: Precision) -> Forward:
    """See Engine."""
    program = onnx(model, one_batch(examples, 2))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        program.save(file, external_data=False)
        if precision == "int8":
            from onnx import load
            from onnxruntime.quantization import quantize_dynamic

            plain, file = load(file), Path(folder, "int8.onnx")
            del plain.graph.value_info[:]  # shapes of constants that quantising transposes: they would contradict
            quantize_dynamic(plain, file, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        return runner(file)


def runner(file: Path) -> Forward:
    """An ONNX file from `images` to `logits` as a function, on as many threads as torch uses."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that wait by spinning take the processor from whatever else runs here, the model it is compared with too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])


ENGINE = Engine("ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), ("fp32", "int8"), ("cpu",), build)
