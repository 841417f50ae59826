"""timm's MlpMixer, of which its names are sizes; it has none for H/14."""

from __future__ import annotations

from timm.models.mlp_mixer import MlpMixer
from torch import nn

from references import Reference, loaded


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config
    other = MlpMixer(
        num_classes=model.num_classes,
        img_size=config.img_size,
        in_chans=config.in_chans,
        patch_size=config.patch_size,
        num_blocks=config.depth,
        embed_dim=config.embed_dim,
    )
    return loaded(other, model)
