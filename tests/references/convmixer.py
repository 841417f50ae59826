"""timm's ConvMixer, whose names fix the sizes."""

from __future__ import annotations

from timm.models.convmixer import ConvMixer
from torch import nn

from references import Reference, loaded


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config
    other = ConvMixer(
        dim=config.embed_dim,
        depth=config.depth,
        kernel_size=config.kernel_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=model.num_classes,
        act_layer={"gelu": nn.GELU, "relu": nn.ReLU}[config.act],
    )
    return loaded(other, model)
