"""Swin Transformer V2: Scaling Up Capacity and Resolution. Liu et al., CVPR 2022, arXiv 2111.09883.

Idea      what makes Swin trainable when large and transferable to larger windows: norms after each branch, attention
          by the angle between query and key, positions from a small network on logarithmic offsets.
Differs   from Swin: those three; the norm of a merging follows its projection.
Shapes    (B,3,256,256) -patch 4-> (B,64,64,96) -merge-> (B,32,32,192) -> (B,16,16,384) -> (B,8,8,768) -> (B,K)
Lecture   hierarchical transformers

Windows, shifts and other image sizes: as in `swin.py`. `12to16_192to256` was trained on ImageNet-22k with windows of
12 at 192 pixels and fine-tuned with 16 at 256: its offsets are measured in the windows that it was trained with,
`pretrained_window_sizes`. The paper trains with stochastic depth 0.2 (T, L), 0.3 (S), 0.5 (B). FLOPs are counted
here, as multiply-adds with the network of positions; the release prints up to 1.5 % less where windows are large.

    variant                             params   FLOPs   top-1     ImageNet-1k, as the release reports
    swinv2_tiny_window8_256              28.3M   5.94G    81.8
    swinv2_tiny_window16_256             28.3M   6.66G    82.8
    swinv2_small_window8_256             49.7M   11.5G    83.7
    swinv2_small_window16_256            49.7M   12.8G    84.1
    swinv2_base_window8_256              87.9M   20.3G    84.2
    swinv2_base_window16_256             87.9M   22.0G    84.6
    swinv2_base_window12_192             87.9M   11.9G       -
    swinv2_base_window12to16_192to256    87.9M   22.0G    86.2
    swinv2_base_window12to24_192to384    87.9M   55.1G    87.1
    swinv2_large_window12_192           196.7M   26.1G       -
    swinv2_large_window12to16_192to256  196.7M   47.7G    86.9
    swinv2_large_window12to24_192to384  196.7M  116.0G    87.6
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.blocks import Block, Mlp, residual
from vitrail.models import swin


@dataclass(frozen=True)
class Config(swin.Config):
    """Swin's, and the windows that positions are measured in, by stage (0: those of the model)."""

    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)


AT_192 = 12, 12, 12, 6

VARIANTS = {
    "swinv2_tiny_window8_256": Config(*swin.TINY, window_size=8, img_size=256),
    "swinv2_tiny_window16_256": Config(*swin.TINY, window_size=16, img_size=256),
    "swinv2_small_window8_256": Config(*swin.SMALL, window_size=8, img_size=256),
    "swinv2_small_window16_256": Config(*swin.SMALL, window_size=16, img_size=256),
    "swinv2_base_window8_256": Config(*swin.BASE, window_size=8, img_size=256),
    "swinv2_base_window16_256": Config(*swin.BASE, window_size=16, img_size=256),
    "swinv2_base_window12_192": Config(*swin.BASE, window_size=12, img_size=192),
    "swinv2_base_window12to16_192to256": Config(*swin.BASE, 16, 256, pretrained_window_sizes=AT_192),
    "swinv2_base_window12to24_192to384": Config(*swin.BASE, 24, 384, pretrained_window_sizes=AT_192),
    "swinv2_large_window12_192": Config(*swin.LARGE, window_size=12, img_size=192),
    "swinv2_large_window12to16_192to256": Config(*swin.LARGE, 16, 256, pretrained_window_sizes=AT_192),
    "swinv2_large_window12to24_192to384": Config(*swin.LARGE, 24, 384, pretrained_window_sizes=AT_192),
}


def log_offsets(window_size: int, trained_size: int) -> Tensor:
    """Offsets in a window on a logarithmic scale (equation 4), measured in `trained_size`: ((2 w - 1) ** 2, 2)."""
    steps = torch.arange(1 - window_size, window_size) * 8 / max(trained_size - 1, 1)
    steps = steps.sign() * torch.log2(steps.abs() + 1) / math.log2(8)
    return torch.cartesian_prod(steps, steps)


class WindowAttention(swin.WindowAttention):
    """Scaled cosine attention with continuous position bias (section 3.3): (B, H, W, D) -> (B, H, W, D)."""

    qk_scale = 1.0  # the queries bring theirs

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, grid: int, trained_size: int):
        super().__init__(dim, num_heads, window_size, shifted, grid)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        offsets = log_offsets(self.window_size, trained_size or self.window_size)
        self.register_buffer("relative_coords_table", offsets, persistent=False)

    def make_positions(self) -> None:
        """The network from an offset to the biases of all heads."""
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, self.num_heads, bias=False))

    def position_table(self) -> Tensor:
        """What an offset adds to the logits, between 0 and 16: ((2 w - 1) ** 2, h)."""
        return 16 * torch.sigmoid(self.cpb_mlp(self.get_buffer("relative_coords_table")))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B * G, N, D) -> (B * G, h, N, d) three times; the scale, at most 100, is in the queries."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v


class PostNormBlock(Block):
    """A block whose norms close its branches, so that what they add stays of one size: (B, H, W, D) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, lambda x: self.norm1(self.attn(x)), self.drop_path1)
        return residual(x, lambda x: self.norm2(self.mlp(x)), self.drop_path2)


class PatchMerging(nn.Module):
    """2 x 2 tokens to one of twice the width, then the norm: (B, H, W, D) -> (B, H/2, W/2, 2 D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(swin.neighbours(x)))


class Model(swin.Model):
    """Swin V2: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them. Raises UserError where it does not.
    """

    config: Config

    def make_merging(self, dim: int) -> nn.Module:
        """Between two stages: (B, H, W, dim) -> (B, H/2, W/2, 2 dim)."""
        return PatchMerging(dim)

    def make_block(self, stage: int, dim: int, shifted: bool, side: int, drop_path: float) -> nn.Module:
        """A block on maps (B, side, side, dim)."""
        config = self.config
        trained = config.pretrained_window_sizes[stage]
        attn = WindowAttention(dim, config.num_heads[stage], config.window_size, shifted, side, trained)
        return PostNormBlock(dim, attn, Mlp(dim, int(dim * config.mlp_ratio)), drop_path, eps=1e-5)

    def init_weights(self) -> None:
        """As Swin, and every branch starts silent: the weights of its norm are 0."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, PostNormBlock):
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)

    def no_weight_decay(self) -> set[str]:
        """Temperatures and the networks of positions."""
        return {name for name, _ in self.named_parameters() if "logit_scale" in name or "cpb_mlp" in name}
