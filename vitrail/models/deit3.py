"""DeiT III: Revenge of the ViT. Touvron, Cord and Jegou, ECCV 2022, arXiv 2204.07118.

Idea      a plain ViT with a simple recipe (three augmentations, binary cross-entropy, long schedules) is enough.
Differs   from ViT: a learned scale on every residual branch; only patches have a position, the class token has none.
Shapes    (B,3,224,224) -patch 16-> (B,196,D) + positions -class token-> (B,197,D) -> (B,K)
Lecture   training transformers on less data

    variant                          params   FLOPs   top-1     ImageNet-1k from scratch (README of the release)
    deit3_small_patch16_224           22.1M   4.60G    81.4
    deit3_small_patch16_384           22.2M   15.5G    83.4
    deit3_medium_patch16_224          38.8M       -    83.0
    deit3_base_patch16_224            86.6M   17.6G    83.8
    deit3_base_patch16_384            86.9M   55.5G    85.0
    deit3_large_patch16_224          304.4M   61.6G    84.9
    deit3_large_patch16_384          304.8M  191.1G    85.8
    deit3_huge_patch14_224           632.1M  167.3G    85.2
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.layers.blocks import LayerScale
from vitrail.layers.position import resize_position
from vitrail.models import vit
from vitrail.models.deit import PlainModel
from vitrail.models.vit import Config

VARIANTS = {
    "deit3_small_patch16_224": Config(16, 224, *vit.SMALL),
    "deit3_small_patch16_384": Config(16, 384, *vit.SMALL),
    "deit3_medium_patch16_224": Config(16, 224, 512, 12, 8),
    "deit3_base_patch16_224": Config(16, 224, *vit.BASE),
    "deit3_base_patch16_384": Config(16, 384, *vit.BASE),
    "deit3_large_patch16_224": Config(16, 224, *vit.LARGE),
    "deit3_large_patch16_384": Config(16, 384, *vit.LARGE),
    "deit3_huge_patch14_224": Config(14, 224, *vit.HUGE),
}


class Model(PlainModel):
    """The vision transformer with scaled branches: images (B, C, H, W), normalised, -> logits (B, K)."""

    release_keys = ((r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),)

    def __init__(self, config: Config):
        super().__init__(config)
        for block in self.blocks:
            block.ls1 = LayerScale(config.embed_dim, init=1e-6)
            block.ls2 = LayerScale(config.embed_dim, init=1e-6)

    def num_positions(self) -> int:
        """Entries of the position embedding: patches alone."""
        return self.grid[0] * self.grid[1]

    def with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Projected patches (B, N, D) of a grid -> (B, 1 + N, D): the class token, patches with their positions."""
        patches = patches + resize_position(self.pos_embed, grid, 0, self.grid)
        tokens = [token.expand(len(patches), -1, -1) for token in self.prefix_tokens()]
        return self.pos_drop(torch.cat([*tokens, patches], dim=1))
