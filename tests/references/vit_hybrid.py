"""As ViT, on timm's ResNetV2."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm, vit, vit_pico


def build(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """Every size as ours in nano, which timm has not."""
    if "nano" not in name:
        return vit.build(model, name, size)
    return from_timm(model, "vit_tiny_r_s16_p8_224", dynamic_img_size=True, **vit_pico.sizes(model))
