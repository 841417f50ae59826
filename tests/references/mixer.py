"""timm's MlpMixer, of which its names are sizes; it has none for H/14."""

from __future__ import annotations

from timm.models.mlp_mixer import MlpMixer
from torch import nn

from references import Reference, loaded, sizes


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    other = MlpMixer(
        **sizes(model, depth="num_blocks"),
    )
    return loaded(other, model)
