"""The model as it is but for the layout of its filters, in float32, or with weights and images in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision
from vitrail.layers.memory_format import channels_last


def build(model: nn.Module, _examples: Tensor, _batch_size: int, precision: Precision) -> Forward:
    """See Engine."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    model = channels_last(model.to(kind))

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images.to(kind)).float()

    return forward


ENGINE = Engine("eager", (), ("fp32", "bf16"), ("cpu", "cuda"), build)
