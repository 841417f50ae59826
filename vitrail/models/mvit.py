"""Multiscale Vision Transformers. Fan, Xiong, Mangalam, Li, Yan, Malik and Feichtenhofer, ICCV 2021,
arXiv 2104.11227. The image models of section 5.

Idea      a transformer with the pyramid of a CNN: attention pools its queries where a stage begins, so that the picture
          shrinks there, and its keys and values everywhere, so that large pictures stay affordable.
Differs   from ViT: overlapping 4 x 4 patches, four stages, depthwise 3 x 3 pooling of q, k and v after their
          projection; heads double with each stage, and the last MLP of a stage widens for the next one.
Shapes    (B,3,224,224) -patch 4, class token-> (B,1+56*56,96) -> (B,1+28*28,192) -> (B,1+14*14,384) -> (B,1+7*7,768)
          -> (B,K)
Lecture   hierarchical transformers

Keys and values are pooled by 4, 2, 1, 1 in the four stages. The pooling convolution reads one head at a time, with the
same weights for all heads of a block; the class token bypasses it but is normalised with the rest. The shortcut around
a striding block is max-pooled, and where the width changes it is a projection of the normalised tokens: so it stands in
the authors' code. State-dict keys are those of their PySlowFast release, whose pooling weights have a time axis of
length 1 that images do not need. Positions are one learned table, resized on the fly at other image sizes (the release
takes one size only). The paper trains with stochastic depth, `drop_path_rate=0.1` for the 16 blocks.

    variant                 params   FLOPs   top-1     Table 8: ImageNet-1k from scratch (FLOPs are multiply-adds)
    mvit_base_16_224         37.0M    7.8G    83.0
    mvit_base_24_224         53.5M   10.9G    83.4
    mvit_base_24_wide_320    73.0M   32.7G    84.8
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import attend, global_places, place
from vitrail.layers.blocks import DropPath, Mlp, drop_path_rates
from vitrail.layers.position import resize_position
from vitrail.models.protocol import Classifier

Grid = tuple[int, int]


@dataclass(frozen=True)
class Config:
    """Width and heads of the first stage, which double with each stage, and the blocks of the four stages."""

    embed_dim: int
    num_heads: int
    depths: tuple[int, ...]
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "mvit_base_16_224": Config(96, 1, (1, 2, 11, 2)),
    "mvit_base_24_224": Config(96, 1, (2, 3, 16, 3)),
    "mvit_base_24_wide_320": Config(112, 1, (2, 3, 16, 3), img_size=320),
}


class Shape(NamedTuple):
    """What varies from block to block: tokens of width `dim` come in, attention has `width`, the MLP gives `out`."""

    dim: int
    width: int
    out: int
    num_heads: int
    stride_q: int
    stride_kv: int
    stride: int
    """Pixels from one token of the block's input to the next."""


def stage_shapes(embed_dim: int, num_heads: int, depths: Iterable[int], expand_attn: bool = False) -> list[list[Shape]]:
    """The blocks of each stage. Widths double in the last MLP of the stage before, or with `expand_attn` in the first
    attention of the stage; the first block of a stage halves the grid; keys are pooled by 4 and less as it shrinks."""
    depths = list(depths)
    stages: list[list[Shape]] = []
    for number, depth in enumerate(depths):
        width, before = embed_dim << number, embed_dim << max(number - 1, 0)
        after = width if expand_attn or number == len(depths) - 1 else width * 2
        stages.append([])
        for block in range(depth):
            first = block == 0 and number > 0
            shape = Shape(
                dim=before if first and expand_attn else width,
                width=width,
                out=after if block == depth - 1 else width,
                num_heads=num_heads << number,
                stride_q=2 if first else 1,
                stride_kv=max(4 >> number, 1),
                stride=4 << (number - first),
            )
            stages[-1].append(shape)
    return stages


class OverlappingPatches(nn.Module):
    """7 x 7 convolution of stride 4: (B, C, H, W) -> (B, N, D) and the grid, N = ceil(H/4) * ceil(W/4)."""

    def __init__(self, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=7, stride=4, padding=3)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        x = self.proj(images)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class HeadConv(nn.Conv2d):
    """Depthwise 3 x 3 convolution of d channels, the same for all heads: (B, h*d, H, W) -> (B, h*d, H', W')."""

    def __init__(self, head_dim: int, stride: int):
        super().__init__(head_dim, head_dim, 3, stride, padding=1, groups=head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.weight.repeat(channels // self.in_channels, 1, 1, 1)
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=channels)


def on_grid(operator: Callable[[Tensor], Tensor], x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Tokens (B, T + H*W, D) through an `operator` on maps, and the new grid. The T first tokens bypass it."""
    prefix = x.shape[1] - grid[0] * grid[1]
    image = operator(x[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2))
    tokens = image.permute(0, 2, 3, 1).flatten(1, 2)
    if prefix:
        tokens = torch.cat([x[:, :prefix], tokens], dim=1)
    return tokens, (image.shape[2], image.shape[3])


class PoolingAttention(nn.Module):
    """Attention of pooled queries over pooled keys (section 3.1): (B, N, dim), grid -> (B, N', width), new grid."""

    pools_all_queries = False
    """Whether queries go through a convolution also where they keep their grid."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.num_heads = shape.num_heads
        head_dim = shape.width // shape.num_heads
        self.qkv = nn.Linear(shape.dim, shape.width * 3)
        self.proj = nn.Linear(shape.width, shape.width)
        self.pool_q: nn.Module | None = None
        if shape.stride_q > 1 or self.pools_all_queries:
            self.pool_q = HeadConv(head_dim, shape.stride_q)
            self.norm_q = nn.LayerNorm(head_dim, eps=1e-6)
        self.pool_k = HeadConv(head_dim, shape.stride_kv)
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6)
        self.pool_v = HeadConv(head_dim, shape.stride_kv)
        self.norm_v = nn.LayerNorm(head_dim, eps=1e-6)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        prefix = x.shape[1] - grid[0] * grid[1]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k, key_grid = on_grid(self.pool_k, k, grid)
        v, _ = on_grid(self.pool_v, v, grid)
        if self.pool_q is not None:
            q, grid = on_grid(self.pool_q, q, grid)
            q = self.norm_q(self.heads(q))
        else:
            q = self.heads(q)
        place(self, lambda: global_places(grid, key_grid, prefix))
        x = self.mix(q, self.norm_k(self.heads(k)), self.norm_v(self.heads(v)), grid, key_grid)
        return self.proj(x.transpose(1, 2).flatten(2)), grid

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, h*d) -> (B, h, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, _grid: Grid, _key_grid: Grid) -> Tensor:
        """Queries (B, h, N, d) of a grid, keys and values (B, h, M, d) of another -> (B, h, N, d)."""
        return attend(q, k, v, site=self)


class Block(nn.Module):
    """Pooling attention and MLP, each with its shortcut: (B, N, dim) and grid -> (B, N', out) and new grid."""

    def __init__(self, shape: Shape, attn: nn.Module, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.dim, eps=1e-6)
        self.attn = attn
        stride = shape.stride_q
        self.pool_skip = nn.MaxPool2d(stride + 1, stride, (stride + 1) // 2) if stride > 1 else None
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = Mlp(shape.width, shape.width * 4, out=shape.out)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        shortcut = self.attn_shortcut(x, normed)
        if self.pool_skip is not None:
            shortcut, _ = on_grid(self.pool_skip, shortcut, grid)
        x, grid = self.attn(normed, grid)
        x = shortcut + self.drop_path1(x)
        normed = self.norm2(x)
        return self.mlp_shortcut(x, normed) + self.drop_path2(self.mlp(normed)), grid

    def attn_shortcut(self, x: Tensor, _normed: Tensor) -> Tensor:
        """What goes around attention, before it is pooled."""
        return x

    def mlp_shortcut(self, x: Tensor, _normed: Tensor) -> Tensor:
        """What goes around the MLP."""
        return x


class WideningBlock(Block):
    """The last block of a stage: its MLP, and a projection beside it, give the width of the next stage."""

    def __init__(self, shape: Shape, attn: nn.Module, drop_path: float):
        super().__init__(shape, attn, drop_path)
        self.proj = nn.Linear(shape.width, shape.out)

    def mlp_shortcut(self, _x: Tensor, normed: Tensor) -> Tensor:
        return self.proj(normed)


class MultiscaleTransformer(Classifier):
    """What MViT and its successor share: images (B, C, H, W), normalised, -> logits (B, K). Any image size.

    A family sets `norm`, provides `embed` and `stage_blocks`, and has its answer in the class token where there is one.
    """

    num_prefix_tokens: int
    norm: nn.Module

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """(B, C, H, W) -> tokens (B, N, D) that enter the first block, and their grid."""

    @abstractmethod
    def stage_blocks(self) -> list[Sequence[nn.Module]]:
        """The blocks of each stage."""

    def stage_tokens(self, images: Tensor) -> list[tuple[Tensor, Grid]]:
        """Tokens (B, N, D) and grid after each stage."""
        x, grid = self.embed(images)
        found = []
        for blocks in self.stage_blocks():
            for block in blocks:
                x, grid = block(x, grid)
            found.append((x, grid))
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): all tokens after the last block and norm."""
        x, _ = self.stage_tokens(images)[-1]
        return self.norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """The class token, or the mean of tokens where there is none: (B, N, D) -> (B, D)."""
        return tokens[:, 0] if self.num_prefix_tokens else tokens.mean(dim=1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Patch tokens after each stage as maps: strides 4, 8, 16 and 32."""
        return [
            x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid) for x, grid in self.stage_tokens(images)
        ]

    def no_weight_decay(self) -> set[str]:
        """Tokens and positions, absolute or relative."""
        tables = ("cls_token", "pos_embed", "rel_pos_h", "rel_pos_w")
        return {name for name, _ in self.named_parameters() if name.endswith(tables)}


class Model(MultiscaleTransformer):
    """MViT for images: (B, C, H, W), normalised, -> logits (B, K)."""

    head_name = "head.projection"
    num_prefix_tokens = 1

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = OverlappingPatches(config.in_chans, dim)
        self.grid = (-(-config.img_size // 4),) * 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], dim))
        shapes = [shape for stage in stage_shapes(dim, config.num_heads, config.depths) for shape in stage]
        rates = drop_path_rates(config.drop_path_rate, len(shapes))
        self.blocks = nn.ModuleList(
            [
                (Block if shape.out == shape.width else WideningBlock)(shape, PoolingAttention(shape), rate)
                for shape, rate in zip(shapes, rates, strict=True)
            ]
        )
        self.num_features = shapes[-1].out
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Module()
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initialisation: a deviation of 0.02 for all weights, and biases of 0.02."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.constant_(parameter, 0.02)

    def init_head(self, head: nn.Module) -> None:
        """As the other linear layers."""
        if isinstance(head, nn.Linear):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.constant_(head.bias, 0.02)

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + resize_position(self.pos_embed, grid, 1, self.grid), grid

    def stage_blocks(self) -> list[Sequence[nn.Module]]:
        blocks = iter(self.blocks)
        return [list(islice(blocks, depth)) for depth in self.config.depths]
