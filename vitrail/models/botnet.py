"""Bottleneck Transformers for Visual Recognition. Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, CVPR 2021,
arXiv 2101.11605.

Idea      in the last stage of a ResNet, global attention takes the place of the 3 x 3 convolutions; the rest stays.
Differs   from ResNet-50: three blocks attend, with learned vectors for offsets of row and column; from ViT: the tokens
          are a convolutional map, no class token. S1 models keep the last stage at stride 16 and make it deeper.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14)
          -three blocks that attend-> (B,2048,7,7), S1: (B,2048,14,14) -> (B,K)
Lecture   attention inside convolutional networks

Queries are scaled before both products, so the logits of positions are scaled too (timm's botnet names, in
`byob_attention.py`, leave those unscaled). As in the authors' code, the shortcut of the first block that attends goes
through the activation, and a stride is a 2 x 2 mean after the attention, before its norm. T3 to T7 of Table 8 have
squeeze-and-excitation in the convolutional blocks and SiLU everywhere. The paper counts their parameters with
squeeze-and-excitation in the last stage too (33.5M for T3), where its text has none; the text is what stands here.

Other sizes than `img_size` are taken as they come: the tables of offsets are resized, linearly along their axis with
both ends and the middle, the offset 0, in place.

    variant               params   FLOPs   top-1     ImageNet-1k; T7's FLOPs as counted here, 45.8G in the paper
    botnet50_224           20.9M   4.02G       -
    botnet_s1_50_224       20.9M   5.41G       -
    botnet_s1_59_224       30.5M    7.3G    81.7     T3
    botnet_s1_110_224      51.7M   10.9G    82.8     T4
    botnet_s1_128_256      69.1M   19.3G    83.5     T5
    botnet_s1_77_320       47.9M   23.2G    84.0     T6
    botnet_s1_128_384      69.2M   45.6G    84.7     T7
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import attend, global_places, place
from vitrail.layers.position import relative_logits
from vitrail.models.attention_resnet import AttentionResNet, Bottleneck, Grid, conv3x3

Act = Callable[[], nn.Module]
ACTIVATIONS: dict[str, Act] = {"relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Config:
    """What Table 8 varies.

    `base_width` is that inside the blocks of the first stage, `se_ratio` the share of a block's channels that
    squeeze-and-excitation keeps, 0 for none of it.
    """

    depths: tuple[int, int, int, int]
    img_size: int = 224
    last_stride: int = 1
    se_ratio: float = 0.0
    act_layer: Literal["relu", "silu"] = "relu"
    base_width: int = 64
    num_heads: int = 4
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "botnet50_224": Config((3, 4, 6, 3), last_stride=2),
    "botnet_s1_50_224": Config((3, 4, 6, 3)),
    "botnet_s1_59_224": Config((3, 4, 6, 6), se_ratio=1 / 16, act_layer="silu"),
    "botnet_s1_110_224": Config((3, 4, 23, 6), se_ratio=1 / 16, act_layer="silu"),
    "botnet_s1_128_256": Config((3, 4, 23, 12), 256, se_ratio=1 / 16, act_layer="silu"),
    "botnet_s1_77_320": Config((3, 4, 6, 12), 320, se_ratio=1 / 16, act_layer="silu"),
    "botnet_s1_128_384": Config((3, 4, 23, 12), 384, se_ratio=1 / 16, act_layer="silu"),
}


class RelativeTables(nn.Module):
    """A learned vector for every offset of row and of column, shared by the heads: queries (B, h, N, d) -> logits
    (B, h, N, N) of all positions of H x W = `grid` (section 3.2, figure 4)."""

    def __init__(self, grid: Grid, dim: int):
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * grid[0] - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * grid[1] - 1, dim))
        nn.init.normal_(self.height_rel, std=dim**-0.5)
        nn.init.normal_(self.width_rel, std=dim**-0.5)

    def forward(self, q: Tensor, grid: Grid) -> Tensor:
        return relative_logits(q, resize_table(self.height_rel, grid[0]), resize_table(self.width_rel, grid[1]), grid)


def resize_table(table: Tensor, side: int) -> Tensor:
    """(2 S - 1, d) -> (2 side - 1, d), linear; the offsets 0, S - 1 and 1 - S stay what they were."""
    length = 2 * side - 1
    if len(table) == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear", align_corners=True)[0].t()


class BottleneckAttention(nn.Module):
    """MHSA of figure 4: attention over all positions, (B, D, H, W) -> (B, D, H/stride, W/stride).

    No projection follows: the block's last convolution mixes the heads.
    """

    def __init__(self, dim: int, num_heads: int, stride: int, grid: Grid):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)
        self.pos_embed = RelativeTables(grid, dim // num_heads)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[-2], x.shape[-1]
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.num_heads, -1)).transpose(-2, -1).unbind(1)
        q = q * q.shape[-1] ** -0.5
        place(self, lambda: global_places(grid, grid))
        x = attend(q, k, v, site=self, bias=self.pos_embed(q, grid), scale=1.0)  # (B, h, N, d)
        return self.pool(x.transpose(-2, -1).flatten(1, 2).unflatten(2, grid))


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say (Hu et al., CVPR 2018, arXiv 1709.01507): (B, D, H, W) -> the same."""

    def __init__(self, dim: int, hidden: int, act: Act):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.act = act()
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class SqueezedBottleneck(Bottleneck):
    """ResNet's block, its channels weighed before the sum."""

    def __init__(self, dim: int, width: int, out: int, stride: int, act: Act, se_ratio: float):
        super().__init__(dim, width, out, stride, conv3x3(0, width, stride, (0, 0)), act)
        self.se = SqueezeExcite(out, round(out * se_ratio), act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.se(self.bn3(self.conv3(y))) + self.downsample(x))


class Model(AttentionResNet):
    """BoTNet: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, width=config.base_width, strides=(1, 2, 2, config.last_stride))

    def make_stem(self) -> None:
        """ResNet's, with the activation of the blocks."""
        super().make_stem()
        self.relu = ACTIVATIONS[self.config.act_layer]()

    def make_block(self, stage: int, index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """A convolutional block; in the last stage, one that attends."""
        config, act, out = self.config, ACTIVATIONS[self.config.act_layer], width * self.expansion
        if stage < 3 and config.se_ratio:
            return SqueezedBottleneck(dim, width, out, stride, act, config.se_ratio)
        if stage < 3:
            return super().make_block(stage, index, dim, width, stride, grid)
        block = Bottleneck(dim, width, out, stride, BottleneckAttention(width, config.num_heads, stride, grid), act)
        if isinstance(block.downsample, nn.Sequential):
            block.downsample.append(act())
        return block

    def no_weight_decay(self) -> set[str]:
        """The tables of offsets."""
        return {name for name, _ in self.named_parameters() if name.endswith(("height_rel", "width_rel"))}
