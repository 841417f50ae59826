"""CoAtNet: Marrying Convolution and Attention for All Data Sizes, as timm trains it. Dai, Liu, Le and Tan,
NeurIPS 2021, arXiv 2106.04803; Wightman's variants in timm, the ones with released weights. The bias from an MLP of
log-spaced offsets ("rmlp"): Swin Transformer V2. Liu et al., CVPR 2022, arXiv 2111.09883.

Idea      that of `coatnet.py`: convolve where maps are large, attend where they are small.
Differs   from `coatnet.py`: MBConv has SiLU, also after its first norm, expands what it reads, not what it leaves, and
          has no biases around; attention is as wide as what it reads; one norm before the mean, then the last layer.
Shapes    (B,3,224,224) -stem-> (B,64,112,112) -MBConv-> (B,96,56,56) -> (B,192,28,28) -attention-> (B,384,14,14)
          -> (B,768,7,7) -mean-> (B,768) -> (B,K)
Lecture   hybrids of convolution and attention

The variants were found one after the other. In the first (`early`) squeeze-and-excite comes before the second norm of
MBConv, and the transformer's shortcuts have no bias; `stride_mode` pool averages in front of MBConv's first convolution
instead of striding in its second; the largest scale their branches (`init_values`). coatnet_0_rw has seven blocks where
coatnet_0 has five. The figure of coatnet_rmlp_2_rw_224 is that of its weights from ImageNet-1k alone; timm's default
ones were pre-trained on ImageNet-12k.

    variant                 params   FLOPs   top-1     timm's weights: ImageNet-1k, coatnet_2_rw_224 after ImageNet-12k
    coatnet_0_rw_224         27.4M   4.41G   82.40
    coatnet_1_rw_224         41.7M   7.99G   83.62
    coatnet_2_rw_224         73.9M   15.0G   86.58
    coatnet_3_rw_224        165.2M   33.3G       -
    coatnet_rmlp_0_rw_224    27.4M   4.68G       -
    coatnet_rmlp_1_rw_224    41.7M   7.81G   83.35
    coatnet_rmlp_1_rw2_224   41.7M   8.07G       -
    coatnet_rmlp_2_rw_224    73.9M   15.1G   84.61
    coatnet_rmlp_2_rw_384    73.9M   47.5G       -
    coatnet_rmlp_3_rw_224   165.2M   33.5G       -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.blocks import DropPath, LayerScale, Mlp, init_xavier
from vitrail.layers.position import relative_index
from vitrail.models import coatnet
from vitrail.models.botnet import SqueezeExcite
from vitrail.models.coatnet import HEAD, Attention, Downsample, LayerNorm2d, PoolingTransformerBlock, TransformerBlock


@dataclass(frozen=True)
class Config(coatnet.Config):
    """CoAtNet's, and what timm varies. `rel_pos_dim` is the hidden width of the bias's MLP; 0: a table."""

    early: bool = False
    stride_mode: Literal["dw", "pool"] = "dw"
    pool_type: Literal["avg2", "max"] = "avg2"
    se_act: Literal["relu", "silu"] = "relu"
    init_values: float = 0.0
    rel_pos_dim: int = 0


SIZE_0 = ((96, 192, 384, 768), (2, 3, 7, 2), 64)
SIZE_1 = ((96, 192, 384, 768), (2, 6, 14, 2), 64)
SIZE_2 = ((128, 256, 512, 1024), (2, 6, 14, 2), 128)
SIZE_3 = ((192, 384, 768, 1536), (2, 6, 14, 2), 192)

VARIANTS = {
    "coatnet_0_rw_224": Config(*SIZE_0, early=True, stride_mode="pool"),
    "coatnet_1_rw_224": Config(*SIZE_1, early=True),
    "coatnet_2_rw_224": Config(*SIZE_2, se_act="silu"),
    "coatnet_3_rw_224": Config(*SIZE_3, se_act="silu", init_values=1e-6),
    "coatnet_rmlp_0_rw_224": Config(*SIZE_0, rel_pos_dim=512),
    "coatnet_rmlp_1_rw_224": Config(*SIZE_1, early=True, stride_mode="pool", pool_type="max", rel_pos_dim=384),
    "coatnet_rmlp_1_rw2_224": Config(*SIZE_1, rel_pos_dim=512),
    "coatnet_rmlp_2_rw_224": Config(*SIZE_2, se_act="silu", init_values=1e-6, rel_pos_dim=512),
    "coatnet_rmlp_2_rw_384": Config(*SIZE_2, img_size=384, se_act="silu", init_values=1e-6, rel_pos_dim=512),
    "coatnet_rmlp_3_rw_224": Config(*SIZE_3, se_act="silu", init_values=1e-6, rel_pos_dim=512),
}

POOLS = {"avg2": lambda: nn.AvgPool2d(2), "max": lambda: nn.MaxPool2d(kernel_size=3, stride=2, padding=1)}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class MBConv(nn.Module):
    """S1 and S2: (B, C, H, W) -> (B, D, H, W), or half the sides with a `shortcut` that halves them and either `down`
    in front or `stride` inside. `early` says on which side of the second norm `se` stands."""

    def __init__(self, dim: int, out: int, drop_path: float, se: nn.Module, early: bool, stride: int):
        super().__init__()
        hidden = dim * 4
        self.shortcut: nn.Module = nn.Identity()
        self.pre_norm = nn.BatchNorm2d(dim)
        self.down: nn.Module = nn.Identity()
        self.conv1_1x1 = nn.Conv2d(dim, hidden, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.se_early = se if early else nn.Identity()
        self.norm2 = nn.BatchNorm2d(hidden)
        self.se = nn.Identity() if early else se
        self.conv3_1x1 = nn.Conv2d(hidden, out, kernel_size=1, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.silu(self.pre_norm(x)))
        y = F.silu(self.norm1(self.conv1_1x1(y)))
        y = F.silu(self.norm2(self.se_early(self.conv2_kxk(y))))
        return self.drop_path(self.conv3_1x1(self.se(y))) + self.shortcut(x)


class LayerScale2d(LayerScale):
    """The same, of the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class RelativeMlp(nn.Module):
    """The bias of an offset as a small network of sign(x) log(1 + |x|), down and across: -> (h, N, N)."""

    def __init__(self, num_heads: int, grid: tuple[int, int], hidden: int):
        super().__init__()
        self.mlp = Mlp(2, hidden, act=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.125)), out=num_heads)
        down, across = (torch.arange(1 - side, side).float() for side in grid)
        offsets = torch.cartesian_prod(down, across)
        self.register_buffer("rel_coords_log", offsets.sign() * offsets.abs().log1p(), persistent=False)
        self.register_buffer("relative_position_index", relative_index(*grid), persistent=False)

    def forward(self) -> Tensor:
        index = self.get_buffer("relative_position_index")
        table = self.mlp(self.get_buffer("rel_coords_log"))
        return table.T.index_select(1, index.flatten()).unflatten(1, index.shape)


class Model(coatnet.Model):
    """CoAtNet in timm's own form: images (B, C, img_size, img_size), normalised, -> logits (B, K)."""

    config: Config

    def make_stem(self) -> nn.Module:
        """S0: (B, C, H, W) -> (B, stem_width, H/2, W/2)."""
        width = self.config.stem_width
        return coatnet.Stem(self.config.in_chans, (width // 2, width), nn.SiLU())

    def make_conv_block(self, _stage: int, dim: int, out: int, first: bool, drop_path: float) -> nn.Module:
        """A block of S1 or S2; the `first` of a stage halves the map."""
        config = self.config
        pooled = config.stride_mode == "pool"
        se = SqueezeExcite(dim * 4, dim, ACTIVATIONS[config.se_act])
        block = MBConv(dim, out, drop_path, se, config.early, stride=2 if first and not pooled else 1)
        if first:
            block.shortcut = Downsample(dim, out, POOLS[config.pool_type](), bias=False)
            block.down = nn.AvgPool2d(2) if pooled else nn.Identity()
        return block

    def make_attention_block(self, stage: int, dim: int, out: int, first: bool, drop_path: float) -> nn.Module:
        """A block of S3 or S4; the `first` of a stage halves the map."""
        config, heads, grid = self.config, dim // HEAD, self.grid_of(stage)
        table = (
            RelativeMlp(heads, grid, config.rel_pos_dim) if config.rel_pos_dim else coatnet.RelativeBias(heads, grid)
        )
        attn = Attention(dim, dim, out, table)
        block = TransformerBlock(out, attn, drop_path)
        if first:
            pool = POOLS[config.pool_type]()
            block = PoolingTransformerBlock(dim, out, attn, drop_path, pool, bias=not config.early)
        if config.init_values:
            block.ls1, block.ls2 = (LayerScale2d(out, config.init_values) for _ in range(2))
        return block

    def make_head(self) -> None:
        """A norm of the last map; nothing between mean and last layer."""
        self.norm = LayerNorm2d(self.num_features, eps=1e-6)
        super().make_head()
        self.head.norm = self.head.pre_logits = nn.Identity()

    def init_weights(self) -> None:
        """CoAtNet's; the MLPs of offsets as the other linear layers of the transformer."""
        super().init_weights()
        init_xavier(self.stages)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map (B, D, H/32, W/32), normalised."""
        return self.norm(super().forward_features(images))
