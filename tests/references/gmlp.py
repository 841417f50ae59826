"""timm's MlpMixer of gMLP's blocks, whose names fix the depth."""

from __future__ import annotations

from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from torch import nn

from references import Reference, loaded


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours, every branch kept."""
    config = model.config
    other = MlpMixer(
        num_classes=model.num_classes,
        img_size=config.img_size,
        in_chans=config.in_chans,
        patch_size=config.patch_size,
        num_blocks=config.depth,
        embed_dim=config.embed_dim,
        mlp_ratio=6,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
    )
    return loaded(other, model)
