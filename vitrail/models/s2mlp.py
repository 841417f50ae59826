"""S2-MLP: Spatial-Shift MLP Architecture for Vision. Yu, Li, Cai, Sun and Li, WACV 2022, arXiv 2106.07477.

Idea      MLPs over channels only; tokens talk because a quarter of the channels moves one step in each of the four
          directions. The shift has no parameters, is local and fits any grid.
Differs   from MLP-Mixer: no weights across tokens, so any size of image goes; a layer norm after the patches, none at
          the end; the deep model has ResMLP's `Affine` instead of layer norm.
Shapes    (B,3,224,224) -patch 16-> (B,14,14,768) -12 blocks-> (B,14,14,768) -mean-> (B,768) -> (B,K)
Lecture   without attention

The authors released no code. The published pseudocode shifts in place, from slices that overlap their source: run
literally it smears one row over all. Here every cell reads the map as it was, and a cell at the edge without a
neighbour keeps its own value (section 3.3). The first two quarters move along the rows' axis, H: the paper writes its
maps width first, which is the same network, transposed. The paper's counts, 71M and 51M, leave out head and norms;
51M is less than its own formula gives for the deep model, 53.5M.

    variant                      params   FLOPs   top-1     Table 2: ImageNet-1k from scratch
    s2mlp_wide_patch16_224        72.2M   14.0G    80.0
    s2mlp_deep_patch16_224        53.9M   10.5G    80.7
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal
from vitrail.layers.tokens import PatchEmbed
from vitrail.models.protocol import Classifier
from vitrail.models.resmlp import Affine, affine_names


@dataclass(frozen=True)
class Config:
    """What Table 1 varies. The channel MLP is 4 embed_dim wide."""

    patch_size: int
    depth: int
    embed_dim: int
    norm: Literal["layer", "affine"] = "layer"
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "s2mlp_wide_patch16_224": Config(16, 12, 768),
    "s2mlp_deep_patch16_224": Config(16, 36, 384, norm="affine"),
}


def shift(x: Tensor) -> Tensor:
    """Move the quarters of the channels by one cell down, up, right and left; edges keep their own: (B, H, W, C)."""
    down, up, right, left = x.chunk(4, dim=-1)
    return torch.cat(
        [
            torch.cat([down[:, :1], down[:, :-1]], dim=1),
            torch.cat([up[:, 1:], up[:, -1:]], dim=1),
            torch.cat([right[:, :, :1], right[:, :, :-1]], dim=2),
            torch.cat([left[:, :, 1:], left[:, :, -1:]], dim=2),
        ],
        dim=-1,
    )


def check_width(dim: int) -> None:
    """Raise UserError where the channels do not fall into four groups."""
    if dim % 4:
        raise UserError(f"embed_dim {dim} is not divisible by 4, the directions of the shift; take a multiple of 4")


class ShiftMlp(nn.Module):
    """Linear, GELU, shift, linear, all D wide (section 3.2): (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, dim: int):
        super().__init__()
        check_width(dim)
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(shift(self.act(self.fc1(x))))


class Model(Classifier):
    """S2-MLP: images (B, C, H, W), normalised, -> logits (B, K). Raises UserError where the patch does not divide."""

    channels_last = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim = self.num_features = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.grid = self.patch_embed.grid(config.img_size, config.img_size)
        self.norm_pre = self.make_norm()
        self.blocks = nn.Sequential(
            *[self.make_block(rate) for rate in drop_path_rates(config.drop_path_rate, config.depth)]
        )
        self.reset_classifier(config.num_classes)
        init_truncated_normal(self)

    def make_norm(self) -> nn.Module:
        """What normalises a cell, or in the deep model only scales and shifts it: (B, H, W, D) -> (B, H, W, D)."""
        dim = self.config.embed_dim
        return nn.LayerNorm(dim) if self.config.norm == "layer" else Affine(dim)

    def make_block(self, drop_path: float) -> nn.Module:
        """The plain block with shift for attention: (B, H, W, D) -> (B, H, W, D)."""
        dim = self.config.embed_dim
        block = Block(dim, ShiftMlp(dim), Mlp(dim, 4 * dim), drop_path)
        for name in ("norm1", "norm2"):
            block.set_submodule(name, self.make_norm())
        return block

    def no_weight_decay(self) -> set[str]:
        """The deep model's affine maps."""
        return affine_names(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/P, W/P)."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        x = self.norm_pre(self.patch_embed(images).unflatten(1, grid))
        return self.blocks(x).permute(0, 3, 1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean(dim=(2, 3))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: that of the last block, (B, D, H/P, W/P)."""
        return [self.forward_features(images)]
