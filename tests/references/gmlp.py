"""timm's MlpMixer of gMLP's blocks, whose names fix the depth."""

from __future__ import annotations

from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from torch import nn

from references import Reference, loaded, sizes


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours, every branch kept."""
    other = MlpMixer(
        **sizes(model, depth="num_blocks"),
        mlp_ratio=6,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
    )
    return loaded(other, model)
