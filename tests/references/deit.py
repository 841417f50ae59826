"""As ViT; at the sizes that timm lacks, its classes with ours."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm, vit, vit_pico


def build(model: nn.Module, name: str, size: tuple[int, int]) -> Reference:
    """timm's model of that name, else every size as ours."""
    if "pico" not in name and "nano" not in name:
        return vit.build(model, name, size)
    if "distilled" not in name:
        return vit_pico.build(model, name, size)
    return from_timm(model, "deit_tiny_distilled_patch16_224", dynamic_img_size=True, **vit_pico.sizes(model))
