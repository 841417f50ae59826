"""torch.compile with frozen weights: constants to the compiler, which reorders them for the machine's matrix units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch

MANY = 1000  # models of one class that a process may compile; beyond torch's own 8 it would fall back to eager


def build(model: nn.Module, examples: Tensor, batch_size: int, precision: Precision) -> Forward:
    """See Engine."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return compiled(model.to(kind), one_batch(examples, batch_size), kind)


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
