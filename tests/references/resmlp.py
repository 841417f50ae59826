"""timm's MlpMixer of ResMLP's blocks, whose names fix the depth."""

from __future__ import annotations

from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn

from references import Reference, loaded, sizes


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    other = MlpMixer(
        **sizes(model, depth="num_blocks"),
        mlp_ratio=4,
        block_layer=ResBlock,
        norm_layer=Affine,
    )
    return loaded(other, model)
