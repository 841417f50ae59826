"""Conditional Positional Encodings for Vision Transformers. Chu, Tian, Zhang, Wang and Shen, ICLR 2023,
arXiv 2102.10882.

Idea      a position can be read off a token's neighbourhood: a depthwise 3 x 3 convolution over the grid, whose zero
          padding tells the border, replaces the table of positions, and fits every image size.
Differs   from DeiT: no position embedding; a positional encoding generator (PEG) after the first block, or one after
          each of the first five (names with `peg5`); the names with `gap` read the mean over patches.
Shapes    (B,3,224,224) -patch 16-> (B,196,D) -class token-> (B,197,D) -block 0, PEG, 11 blocks-> (B,197,D) -> (B,K)
Lecture   position embeddings

The authors released no code for this model: keys and initialisation are those of their Twins. The paper's sizes of S
and B, 23M and 88M, are more than a depthwise PEG gives; printed is what is counted.

    variant                           params   FLOPs   top-1     ImageNet-1k from scratch, the paper's tables
    cpvt_tiny_patch16_224               5.7M   1.25G    72.4
    cpvt_small_patch16_224             22.0M   4.60G    79.9
    cpvt_base_patch16_224              86.4M   17.6G    82.3
    cpvt_tiny_patch16_gap_224           5.7M   1.25G    74.9
    cpvt_small_patch16_gap_224         22.0M   4.57G    81.5
    cpvt_base_patch16_gap_224          86.4M   17.5G       -
    cpvt_tiny_patch16_peg5_224          5.7M   1.26G    73.4
    cpvt_small_patch16_peg5_224        22.0M   4.60G    80.5
    cpvt_base_patch16_peg5_224         86.5M   17.6G       -
    cpvt_tiny_patch16_peg5_gap_224      5.7M   1.25G       -
    cpvt_small_patch16_peg5_gap_224    22.0M   4.58G       -
    cpvt_base_patch16_peg5_gap_224     86.5M   17.5G       -
    cpvt_nano_patch8_32                 416K    5.6M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.models import vit
from vitrail.models.deit import PlainModel


@dataclass(frozen=True)
class Config(vit.Config):
    """ViT's, and after how many of the first blocks a PEG stands."""

    num_pegs: int = 1


VARIANTS = {
    "cpvt_tiny_patch16_224": Config(16, 224, *vit.TINY),
    "cpvt_small_patch16_224": Config(16, 224, *vit.SMALL),
    "cpvt_base_patch16_224": Config(16, 224, *vit.BASE),
    "cpvt_tiny_patch16_gap_224": Config(16, 224, *vit.TINY, global_pool="avg"),
    "cpvt_small_patch16_gap_224": Config(16, 224, *vit.SMALL, global_pool="avg"),
    "cpvt_base_patch16_gap_224": Config(16, 224, *vit.BASE, global_pool="avg"),
    "cpvt_tiny_patch16_peg5_224": Config(16, 224, *vit.TINY, num_pegs=5),
    "cpvt_small_patch16_peg5_224": Config(16, 224, *vit.SMALL, num_pegs=5),
    "cpvt_base_patch16_peg5_224": Config(16, 224, *vit.BASE, num_pegs=5),
    "cpvt_tiny_patch16_peg5_gap_224": Config(16, 224, *vit.TINY, global_pool="avg", num_pegs=5),
    "cpvt_small_patch16_peg5_gap_224": Config(16, 224, *vit.SMALL, global_pool="avg", num_pegs=5),
    "cpvt_base_patch16_peg5_gap_224": Config(16, 224, *vit.BASE, global_pool="avg", num_pegs=5),
    "cpvt_nano_patch8_32": Config(8, 32, 96, 4, 3, mlp_ratio=2.0),
}


class PEG(nn.Module):
    """Patches plus a depthwise convolution of their map (section 3.3): (B, T + N, D) -> same, T tokens untouched."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))
        nn.init.normal_(self.proj[0].get_parameter("weight"), std=(2 / 9) ** 0.5)  # fan-out 9, as in Twins
        nn.init.zeros_(self.proj[0].get_parameter("bias"))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        first = x.shape[1] - grid[0] * grid[1]
        tokens, patches = x[:, :first], x[:, first:]
        encoding = self.proj(patches.transpose(1, 2).unflatten(2, grid))
        patches = patches + encoding.flatten(2).transpose(1, 2)
        return torch.cat([tokens, patches], dim=1) if first else patches


class Model(PlainModel):
    """CPVT: images (B, C, H, W), normalised, -> logits (B, K).

    Any size that the patch divides is accepted; nothing is resized. Raises UserError where it does not divide.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        del self.pos_embed  # there is no table
        self.pos_block = nn.ModuleList([PEG(config.embed_dim) for _ in range(config.num_pegs)])

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or encode positions, not weights."""
        return {"cls_token", *(f"pos_block.{name}" for name, _ in self.pos_block.named_parameters())}

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): patches, after the class token if there is one; no position yet."""
        x = self.patch_embed(images)
        return self.pos_drop(torch.cat([token.expand(len(x), -1, -1) for token in self.prefix_tokens()] + [x], dim=1))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): all tokens after the last block and norm."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        x = self.embed(images)
        for block, peg in zip(self.blocks, self.pos_block, strict=False):  # the first blocks have one each
            x = peg(block(x), grid)
        return self.norm(self.blocks[len(self.pos_block) :](self.patch_drop(x)))  # each knows its place by now
