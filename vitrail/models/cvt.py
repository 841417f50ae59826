"""CvT: Introducing Convolutions to Vision Transformers. Wu, Xiao, Codella, Liu, Dai, Yuan and Zhang, ICCV 2021,
arXiv 2103.15808.

Idea      convolutions where a transformer is blind to neighbours: tokens are embedded by overlapping convolutions, and
          queries, keys and values are projected by depthwise ones. Position embeddings are then not needed.
Differs   from ViT: three stages, keys and values pooled by 2 through their convolution's stride, no positions, a class
          token in the last stage only; logits are scaled by the width of the stage, not of a head.
Shapes    (B,3,224,224) -7 x 7 / 4-> (B,56*56,64) -3 x 3 / 2-> (B,28*28,192) -3 x 3 / 2-> (B,14*14,384) -class token->
          (B,1+14*14,384) -10 blocks-> (B,K)
Lecture   hybrids of convolution and attention

The released code is followed where the paper says nothing: a projection is depthwise convolution, batch norm, linear
layer, with no activation between; the class token goes past the first two; QuickGELU in the MLPs (transformers' port
of the weights has the exact GELU). Of the last block the class token alone is read, so its convolution of queries does
nothing. Any image size: there are no positions. The paper trains with stochastic depth in the last stage,
`drop_path_rate`: 0.1 (13, 21), 0.3 (w24).

    variant        params   FLOPs   top-1     the release's table; w24 was pre-trained on ImageNet-22k
    cvt_13_224        20M    4.5G    81.6     FLOPs are multiply-adds; the release prints 193.2G for w24
    cvt_13_384        20M   16.3G    83.0
    cvt_21_224        32M    7.1G    82.5
    cvt_21_384        32M   24.9G    83.3
    cvt_w24_384      277M  194.2G    87.6
    cvt_nano_32      952K    5.9M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.layers.attention import attend, global_places, place
from vitrail.layers.blocks import DropPath, Mlp, QuickGELU, drop_path_rates, init_truncated_normal
from vitrail.models.mvit import Grid, on_grid
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """Width, heads and blocks of the three stages."""

    embed_dim: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    depths: tuple[int, int, int]
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "cvt_13_224": Config((64, 192, 384), (1, 3, 6), (1, 2, 10)),
    "cvt_13_384": Config((64, 192, 384), (1, 3, 6), (1, 2, 10), img_size=384),
    "cvt_21_224": Config((64, 192, 384), (1, 3, 6), (1, 4, 16)),
    "cvt_21_384": Config((64, 192, 384), (1, 3, 6), (1, 4, 16), img_size=384),
    "cvt_w24_384": Config((192, 768, 1024), (3, 12, 16), (2, 2, 20), img_size=384),
    "cvt_nano_32": Config((32, 64, 128), (1, 2, 4), (1, 2, 3), img_size=32),
}


STAGE = r"cvt\.encoder\.stages\.(\d)\."
LAYER = STAGE + r"layers\.(\d+)\."
QKV = tuple(zip("qkv", ("query", "key", "value"), strict=True))
TRANSFORMERS = (  # whose repositories hold the official weights
    (STAGE + r"cls_token", r"stage\1.cls_token"),
    (STAGE + r"embedding\.convolution_embeddings\.projection\.(.+)", r"stage\1.patch_embed.proj.\2"),
    (STAGE + r"embedding\.convolution_embeddings\.normalization\.(.+)", r"stage\1.patch_embed.norm.\2"),
    (LAYER + r"layernorm_before\.(.+)", r"stage\1.blocks.\2.norm1.\3"),
    (LAYER + r"layernorm_after\.(.+)", r"stage\1.blocks.\2.norm2.\3"),
    *((LAYER + rf".+_{w}\..+\.convolution\.(.+)", rf"stage\1.blocks.\2.attn.conv_proj_{c}.conv.\3") for c, w in QKV),
    *((LAYER + rf".+_{w}\..+\.normalization\.(.+)", rf"stage\1.blocks.\2.attn.conv_proj_{c}.bn.\3") for c, w in QKV),
    *((LAYER + rf".+\.projection_{w}\.(.+)", rf"stage\1.blocks.\2.attn.proj_{c}.\3") for c, w in QKV),
    (LAYER + r"attention\.output\.dense\.(.+)", r"stage\1.blocks.\2.attn.proj.\3"),
    (LAYER + r"intermediate\.dense\.(.+)", r"stage\1.blocks.\2.mlp.fc1.\3"),
    (LAYER + r"output\.dense\.(.+)", r"stage\1.blocks.\2.mlp.fc2.\3"),
    (r"layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.\1"),
)


class ConvEmbed(nn.Module):
    """Convolutional token embedding (section 3.1): (B, C, H, W) -> tokens (B, N, D), normalised, and their grid."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


def depthwise(dim: int, stride: int) -> nn.Module:
    """The part of a projection that sees neighbours: (B, D, H, W) -> (B, D, H/s, W/s), rounded up."""
    conv = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(dim)))


class ConvAttention(nn.Module):
    """Attention with convolutional projections (section 3.2): tokens (B, T + N, D) of a grid -> the same shape."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.conv_proj_q = depthwise(dim, stride=1)
        self.conv_proj_k = depthwise(dim, stride=2)
        self.conv_proj_v = depthwise(dim, stride=2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        prefix = x.shape[1] - grid[0] * grid[1]
        q, _ = on_grid(self.conv_proj_q, x, grid)
        k, key_grid = on_grid(self.conv_proj_k, x, grid)
        v, _ = on_grid(self.conv_proj_v, x, grid)
        place(self, lambda: global_places(grid, key_grid, prefix))
        q, k, v = self.heads(self.proj_q(q)), self.heads(self.proj_k(k)), self.heads(self.proj_v(v))
        return self.proj(attend(q, k, v, site=self, scale=self.scale).transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, h, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """The plain block around attention that knows its grid: (B, T + N, D) -> the same shape."""

    def __init__(self, dim: int, num_heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvAttention(dim, num_heads)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * 4, act=QuickGELU)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Embedding and blocks: a map (B, C, H, W) -> tokens (B, N, D) and their grid."""

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block]):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """The tokens that enter the first block, and their grid."""
        return self.patch_embed(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.embed(x)
        for block in self.blocks:
            x = block(x, grid)
        return x, grid


class LastStage(Stage):
    """With a class token before the others: -> (B, 1 + N, D)."""

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block]):
        super().__init__(patch_embed, blocks)
        self.cls_token = nn.Parameter(torch.empty(1, 1, patch_embed.proj.out_channels))

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1), grid


class Model(Classifier):
    """CvT: images (B, C, H, W), normalised, -> logits (B, K). Any image size."""

    blocks_are = r"stage\d\.blocks\.\d+"
    num_prefix_tokens = 1
    release_keys = TRANSFORMERS

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dims, heads, depths = config.embed_dim, config.num_heads, config.depths
        first = [Block(dims[0], heads[0], 0.0) for _ in range(depths[0])]
        second = [Block(dims[1], heads[1], 0.0) for _ in range(depths[1])]
        third = [Block(dims[2], heads[2], rate) for rate in drop_path_rates(config.drop_path_rate, depths[2])]
        self.stage0 = Stage(ConvEmbed(config.in_chans, dims[0], 7, 4, 2), first)
        self.stage1 = Stage(ConvEmbed(dims[0], dims[1], 3, 2, 1), second)
        self.stage2 = LastStage(ConvEmbed(dims[1], dims[2], 3, 2, 1), third)
        self.grid = (-(-((config.img_size + 1) // 4) // 4),) * 2  # of the last stage
        self.num_features = dims[2]
        self.norm = nn.LayerNorm(dims[2])
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initialisation: a deviation of 0.02 for matrices and token, torch's for convolutions."""
        init_truncated_normal(self)
        nn.init.trunc_normal_(self.stage2.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """The class token."""
        return {"stage2.cls_token"}

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Maps (B, D, H, W) after the first two stages, tokens (B, 1 + N, D) after the last, and their grid."""
        x, grid = self.stage0(images)
        first = x.transpose(1, 2).unflatten(2, grid)
        x, grid = self.stage1(first)
        second = x.transpose(1, 2).unflatten(2, grid)
        return first, second, *self.stage2(second)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): class token and patches of the last stage, normalised."""
        return self.norm(self.maps(images)[2])

    def pool(self, tokens: Tensor) -> Tensor:
        """The class token: (B, 1 + N, D) -> (B, D)."""
        return tokens[:, 0]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Patch tokens after each stage as maps: strides 4, 8 and 16."""
        first, second, tokens, grid = self.maps(images)
        return [first, second, tokens[:, 1:].transpose(1, 2).unflatten(2, grid)]
