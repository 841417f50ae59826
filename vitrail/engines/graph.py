"""A model as a graph for others: torch.export's, which takes any batch, and ONNX made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.layers.attention import probing


def exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The graph of `model` for images of this size (B, C, H, W), in batches of any number; B is at least 2 here."""
    # strict: the lenient tracer takes len(x) for a constant, and the batch would be fixed
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=True)


def onnx(model: nn.Module, images: Tensor) -> torch.onnx.ONNXProgram:
    """The same as ONNX, from `images` to `logits`."""
    with probing(_unchanged):  # somebody watches, so attention is spelt out: ONNX has no fused one for every bias
        program = torch.onnx.export(
            exported(model, images),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
        )
    assert program is not None  # always, with dynamo=True
    return program


def _unchanged(_site: nn.Module, weights: Tensor) -> Tensor:
    return weights
