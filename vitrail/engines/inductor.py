"""torch.compile with frozen weights: constants to the compiler, which reorders them for the machine's matrix units.

Linear layers in float32 it would hand to MKL, which uses half of the width of AMD's processors. They are given to
oneDNN beforehand, as the compiler itself does in bfloat16 and with convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch, replace_linear

MANY = 1000  # models of one class that a process may compile; beyond torch's own 8 it would fall back to eager


def build(model: nn.Module, examples: Tensor, batch_size: int, precision: Precision) -> Forward:
    """See Engine."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    if precision == "fp32" and not examples.is_cuda and torch.backends.mkldnn.is_available():
        replace_linear(model, Packed)
    return compiled(model.to(kind), one_batch(examples, batch_size), kind)


class Packed(nn.Module):
    """A linear layer whose weights oneDNN has laid out for its products: (..., K) -> (..., N)."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach()))
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # the compiler's own patterns of this operator are of two dimensions
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return y.unflatten(0, x.shape[:-1])


def compiled(model: nn.Module, images: Tensor, kind: torch.dtype) -> Forward:
    """`model`, whose weights are of the kind that images become, compiled for the shape of `images`."""
    from torch._dynamo import config as tracer
    from torch._inductor import config as compiler

    run = torch.compile(model, fullgraph=True, dynamic=False)

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            return run(images.to(kind)).float()

    # freezing as an option of torch.compile comes too late: the tracer reads the setting, and leaves weights inputs
    with compiler.patch(freezing=True), tracer.patch(recompile_limit=MANY):
        forward(images)
    return forward


ENGINE = Engine("torch.compile", (), ("fp32", "bf16"), ("cpu", "cuda"), build)
