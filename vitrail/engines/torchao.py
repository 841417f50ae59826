"""torchao: linear layers in int8, activations scaled as they come, in the graph that torch.compile makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, one_batch
from vitrail.engines.inductor import compiled


def build(model: nn.Module, examples: Tensor, batch_size: int, _precision: Precision) -> Forward:
    """See Engine."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = model.bfloat16()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return compiled(model, one_batch(examples, batch_size), torch.bfloat16)


ENGINE = Engine("torchao", ("torchao",), ("int8",), ("cpu",), build)
