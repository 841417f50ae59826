"""transformers' CvtForImageClassification with the activation that the authors trained with."""

from __future__ import annotations

import re

from torch import Tensor, nn
from transformers import CvtConfig, CvtForImageClassification

from references import Reference, called
from vitrail.layers.blocks import QuickGELU

QKV = {"q": "query", "k": "key", "v": "value"}


class Logits(nn.Module):
    """What a model of transformers returns, its logits alone."""

    def __init__(self, other: nn.Module):
        super().__init__()
        self.other = other

    def forward(self, images: Tensor) -> Tensor:
        return self.other(images).logits


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Widths, heads and depths as ours. Without stochastic depth, which transformers applies elsewhere."""
    config = model.config
    settings = CvtConfig(
        num_channels=config.in_chans,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        depth=config.depths,
        drop_path_rate=(0.0, 0.0, 0.0),
        num_labels=model.num_classes,
    )
    other = CvtForImageClassification(settings)
    for stage in other.cvt.encoder.stages:
        for layer in stage.layers:
            layer.intermediate.activation = QuickGELU()
    renamed = {f"other.{transformers_key(key)}" for key in model.state_dict()}
    reference = Logits(other).train(model.training)
    assert renamed == reference.state_dict().keys()
    return called(
        reference, lambda parameters: {f"other.{transformers_key(key)}": value for key, value in parameters.items()}
    )


def transformers_key(key: str) -> str:
    """The authors' name of a parameter or buffer in transformers."""
    for pattern, theirs in (
        (r"^stage(\d)", r"cvt.encoder.stages.\1"),
        (r"patch_embed\.proj", "embedding.convolution_embeddings.projection"),
        (r"patch_embed\.norm", "embedding.convolution_embeddings.normalization"),
        (r"blocks\.(\d+)\.norm1", r"layers.\1.layernorm_before"),
        (r"blocks\.(\d+)\.norm2", r"layers.\1.layernorm_after"),
        (r"blocks\.(\d+)\.mlp\.fc1", r"layers.\1.intermediate.dense"),
        (r"blocks\.(\d+)\.mlp\.fc2", r"layers.\1.output.dense"),
        (r"blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.output.dense."),
        (r"blocks\.(\d+)\.attn", r"layers.\1.attention.attention"),
        (r"conv_proj_(\w)", r"convolution_projection_{\1}.convolution_projection"),
        (r"\.conv\.", ".convolution."),
        (r"\.bn\.", ".normalization."),
        (r"\.proj_(\w)", r".projection_{\1}"),
        (r"^norm\.", "layernorm."),
        (r"^head\.", "classifier."),
    ):
        key = re.sub(pattern, theirs, key)
    return key.format(**QKV)
