"""Attention Augmented Convolutional Networks. Bello, Zoph, Vaswani, Shlens and Le, ICCV 2019, arXiv 1904.09925.

Idea      of the channels that a 3 x 3 convolution gives, some come from attention over the whole map instead; both
          parts are put side by side.
Differs   from ResNet: so in every block of the last three stages; from the transformer: a convolution beside the
          attention, and logits that know the offset of two positions, in rows and in columns.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7)
          -> (B,K); in the third stage (B,256,14,14) -> 232 channels convolved, 24 attended
Lecture   attention inside convolutional networks

Of F channels, upsilon F come from attention, whose queries have kappa F channels, at least 20 a head (section 4.1).
Queries are scaled before both products, so the logits of positions are scaled too. Where a block strides, the
attention reads the strided map. Authors' code is not released; what the paper leaves open is decided by its printed
counts, which all come out: three augmented stages, no biases, and in ResNet-34 the first convolution of each block.
At kappa = upsilon = 1 no convolution is left. Other sizes than `img_size` are taken as they come: the tables of offsets
are resized, as in `botnet.py`.

    variant                  params   FLOPs   top-1     ImageNet-1k; FLOPs as counted here, with the products of q, k
    aa_resnet34               20.7M   4.16G    74.7     and v, which the paper's seem to lack: a multiplication and an
    aa_resnet50               25.8M   4.72G    77.7     addition apart, it prints 7.1, 8.3, 16.1 and 23.8 G
    aa_resnet101              45.4M   8.68G    78.7
    aa_resnet152              61.6M  13.12G    79.1
    aa_resnet50_kappa25       24.3M   4.57G       -     kappa = upsilon = 0.25, 0.5, 0.75 and 1
    aa_resnet50_kappa50       22.3M   4.38G       -
    aa_resnet50_kappa75       20.7M   4.24G       -
    aa_resnet50_kappa100      19.4M   4.15G       -
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import attend, global_places, place
from vitrail.models.attention_resnet import AttentionResNet, BasicBlock, Grid, conv3x3
from vitrail.models.botnet import RelativeTables


@dataclass(frozen=True)
class Config:
    """What tables 2 and 6 vary: depths, and the share of the channels that queries (kappa) and values (upsilon) get.

    `basic` blocks are two 3 x 3 convolutions, the others bottlenecks; `base_width` is that of the first stage.
    """

    depths: tuple[int, int, int, int]
    kappa: float = 0.2
    upsilon: float = 0.1
    basic: bool = False
    num_heads: int = 8
    base_width: int = 64
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "aa_resnet34": Config((3, 4, 6, 3), 0.25, 0.25, basic=True),
    "aa_resnet50": Config((3, 4, 6, 3)),
    "aa_resnet101": Config((3, 4, 23, 3)),
    "aa_resnet152": Config((3, 8, 36, 3)),
    "aa_resnet50_kappa25": Config((3, 4, 6, 3), 0.25, 0.25),
    "aa_resnet50_kappa50": Config((3, 4, 6, 3), 0.5, 0.5),
    "aa_resnet50_kappa75": Config((3, 4, 6, 3), 0.75, 0.75),
    "aa_resnet50_kappa100": Config((3, 4, 6, 3), 1.0, 1.0),
}


class AugmentedConv(nn.Module):
    """[convolution, attention] side by side: (B, dim, H, W) -> (B, out, H/stride, W/stride), figure 2.

    `grid` is H x W at `config.img_size`; d_k and d_v are the channels of all heads' queries and values.
    """

    def __init__(self, dim: int, out: int, stride: int, grid: Grid, config: Config):
        super().__init__()
        self.num_heads = heads = config.num_heads
        self.d_k = max(20 * heads, int(config.kappa * out) // heads * heads)
        self.d_v = int(config.upsilon * out) // heads * heads
        if self.d_v == 0:
            raise UserError(
                f"upsilon {config.upsilon} of {out} channels leaves none for each of {heads} heads; "
                f"raise upsilon or base_width, or lower num_heads"
            )
        self.conv: nn.Module | None = None
        if self.d_v < out:
            self.conv = nn.Conv2d(dim, out - self.d_v, kernel_size=3, stride=stride, padding=1, bias=False)
        self.qkv = nn.Conv2d(dim, 2 * self.d_k + self.d_v, kernel_size=1, stride=stride, bias=False)
        self.pos_embed = RelativeTables((-(-grid[0] // stride), -(-grid[1] // stride)), self.d_k // heads)
        self.proj = nn.Conv2d(self.d_v, self.d_v, kernel_size=1, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """The attended channels: (B, dim, H, W) -> (B, d_v, H/stride, W/stride)."""
        qkv = self.qkv(x)
        grid = qkv.shape[-2], qkv.shape[-1]
        parts = qkv.flatten(2).split([self.d_k, self.d_k, self.d_v], dim=1)
        q, k, v = (part.unflatten(1, (self.num_heads, -1)).transpose(-2, -1) for part in parts)  # (B, h, N, d)
        q = q * q.shape[-1] ** -0.5
        place(self, lambda: global_places(grid, grid))
        y = attend(q, k, v, site=self, bias=self.pos_embed(q, grid), scale=1.0)
        return self.proj(y.transpose(-2, -1).flatten(1, 2).unflatten(2, grid))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(x)
        return attended if self.conv is None else torch.cat([self.conv(x), attended], dim=1)


class Model(AttentionResNet):
    """A ResNet whose convolutions are augmented: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, self.augmented, width=config.base_width)

    def augmented(self, stage: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """The spatial operator of a bottleneck: a convolution in the first stage."""
        if stage == 0:
            return conv3x3(stage, width, stride, grid)
        return AugmentedConv(width, width, stride, grid, self.config)

    def out_channels(self, width: int) -> int:
        """Basic blocks do not widen."""
        return width if self.config.basic else super().out_channels(width)

    def make_block(self, stage: int, index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """A bottleneck, or a basic block whose first convolution is augmented."""
        if not self.config.basic:
            return super().make_block(stage, index, dim, width, stride, grid)
        first: nn.Module = nn.Conv2d(dim, width, kernel_size=3, stride=stride, padding=1, bias=False)
        return BasicBlock(dim, width, stride, AugmentedConv(dim, width, stride, grid, self.config) if stage else first)

    def no_weight_decay(self) -> set[str]:
        """The tables of offsets."""
        return {name for name, _ in self.named_parameters() if name.endswith(("height_rel", "width_rel"))}
