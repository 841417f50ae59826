"""MViTv2: Improved Multiscale Vision Transformers for Classification and Detection. Li, Wu, Fan, Mangalam, Xiong, Malik
and Feichtenhofer, CVPR 2022, arXiv 2112.01526.

Idea      pooling attention that knows where its tokens are, and that does not lose its queries: relative positions,
          decomposed into rows and columns, enter the logits, and the pooled queries are added to the result.
Differs   from MViT: queries are pooled by a convolution in every block, no absolute positions, no class token in the
          models trained on ImageNet-1k alone; the width doubles in the first attention of a stage (L: as in MViT).
Shapes    (B,3,224,224) -patch 4-> (B,56*56,96) -> (B,28*28,192) -> (B,14*14,384) -> (B,7*7,768) -mean-> (B,K)
Lecture   hierarchical transformers

Names with `cls` have a class token, as the models pre-trained on ImageNet-21k: it takes no part in relative positions,
and no query is added to it (timm adds one, the authors' code does not). So the last block, of which the class token
alone is read, has relative positions and a convolution of queries that do nothing. A block's two tables have as many
offsets as its finer grid, queries' or keys'; at other image sizes they are interpolated on the fly, linearly, as in
PySlowFast. State-dict keys are timm's. The paper trains with stochastic depth, `drop_path_rate`: 0.1 (tiny, small), 0.3
(base), 0.5 (large).

    variant             params   FLOPs   top-1     Table 4: ImageNet-1k at 224 x 224; large_cls and huge_cls were
    mvitv2_tiny           24M     4.7G    82.3     pre-trained on ImageNet-21k. FLOPs are multiply-adds. Counted, not
    mvitv2_small          35M     7.0G    83.6     printed: large and huge, for which the release has 42.1G and 120.6G
    mvitv2_base           52M    10.2G    84.4     (and 218M for both models called L)
    mvitv2_large         218M    43.7G    85.3
    mvitv2_small_cls      35M     7.0G       -
    mvitv2_base_cls       52M    10.2G       -
    mvitv2_large_cls     214M    42.0G    87.5
    mvitv2_huge_cls      667M   120.3G    88.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import attend
from vitrail.layers.blocks import drop_path_rates, init_truncated_normal
from vitrail.models.mvit import (
    Block,
    Grid,
    MultiscaleTransformer,
    OverlappingPatches,
    PoolingAttention,
    Shape,
    stage_shapes,
)


@dataclass(frozen=True)
class Config:
    """Width and heads of the first stage, which double with each stage, and the blocks of the four stages."""

    embed_dim: int
    num_heads: int
    depths: tuple[int, ...]
    expand_attn: bool = True
    use_cls_token: bool = False
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "mvitv2_tiny": Config(96, 1, (1, 2, 5, 2)),
    "mvitv2_small": Config(96, 1, (1, 2, 11, 2)),
    "mvitv2_base": Config(96, 1, (2, 3, 16, 3)),
    "mvitv2_large": Config(144, 2, (2, 6, 36, 4), expand_attn=False),
    "mvitv2_small_cls": Config(96, 1, (1, 2, 11, 2), use_cls_token=True),
    "mvitv2_base_cls": Config(96, 1, (2, 3, 16, 3), use_cls_token=True),
    "mvitv2_large_cls": Config(144, 2, (2, 6, 36, 4), use_cls_token=True),
    "mvitv2_huge_cls": Config(192, 3, (4, 8, 60, 8), use_cls_token=True),
}


def offsets(rel_pos: Tensor, queries: int, keys: int) -> Tensor:
    """The vector of a table for every query and key along one axis: (L, d) -> (queries, keys, d).

    Positions are counted in steps of the finer of the two grids; a table made for another is interpolated.
    """
    length = 2 * max(queries, keys) - 1
    if len(rel_pos) != length:
        rel_pos = F.interpolate(rel_pos.T[None], size=length, mode="linear")[0].T
    step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    at = torch.arange(queries, device=rel_pos.device)[:, None] * step
    key_at = torch.arange(keys, device=rel_pos.device) * key_step
    return rel_pos[(at - key_at + (keys - 1) * key_step).long()]


class RelativePoolingAttention(PoolingAttention):
    """Pooling attention with decomposed relative positions and a residual of the pooled queries (section 4.1)."""

    pools_all_queries = True

    def __init__(self, shape: Shape, img_size: int):
        super().__init__(shape)
        side = img_size // shape.stride
        length = 2 * max(side // shape.stride_q, side // shape.stride_kv) - 1
        self.rel_pos_h = nn.Parameter(torch.empty(length, shape.width // shape.num_heads))
        self.rel_pos_w = nn.Parameter(torch.empty(length, shape.width // shape.num_heads))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
        prefix = q.shape[2] - grid[0] * grid[1]
        patches = q[:, :, prefix:]
        bias = self.relative_bias(patches.unflatten(2, grid), key_grid)
        x = attend(q, k, v, site=self, bias=F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias)
        return x + (F.pad(patches, (0, 0, prefix, 0)) if prefix else q)

    def relative_bias(self, q: Tensor, key_grid: Grid) -> Tensor:
        """q_i . (R_h[y_i, y_j] + R_w[x_i, x_j]) for queries (B, h, H, W, d) and the keys of a grid: (B, h, N, M)."""
        high, wide = q.shape[2:4]
        by_row = torch.einsum("bhyxd,yjd->bhyxj", q, offsets(self.rel_pos_h, high, key_grid[0]))
        by_column = torch.einsum("bhyxd,xjd->bhyxj", q, offsets(self.rel_pos_w, wide, key_grid[1]))
        return (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)


class WideningAttentionBlock(Block):
    """The first block of a stage: attention, and a projection beside it, give the width of the stage."""

    def __init__(self, shape: Shape, attn: nn.Module, drop_path: float):
        super().__init__(shape, attn, drop_path)
        self.shortcut_proj_attn = nn.Linear(shape.dim, shape.width)

    def attn_shortcut(self, _x: Tensor, normed: Tensor) -> Tensor:
        return self.shortcut_proj_attn(normed)


class WideningMlpBlock(Block):
    """The last block of a stage: its MLP, and a projection beside it, give the width of the next stage."""

    def __init__(self, shape: Shape, attn: nn.Module, drop_path: float):
        super().__init__(shape, attn, drop_path)
        self.shortcut_proj_mlp = nn.Linear(shape.width, shape.out)

    def mlp_shortcut(self, _x: Tensor, normed: Tensor) -> Tensor:
        return self.shortcut_proj_mlp(normed)


class Stage(nn.Module):
    """The blocks of one grid size."""

    def __init__(self, shapes: Sequence[Shape], rates: Sequence[float], img_size: int):
        super().__init__()
        self.blocks = nn.ModuleList()
        for shape, rate in zip(shapes, rates, strict=True):
            kind = WideningAttentionBlock if shape.dim != shape.width else Block
            kind = WideningMlpBlock if shape.out != shape.width else kind
            self.blocks.append(kind(shape, RelativePoolingAttention(shape, img_size), rate))


class Model(MultiscaleTransformer):
    """MViTv2: images (B, C, H, W), normalised, -> logits (B, K)."""

    blocks_are = r"stages\.\d+\.blocks\.\d+"
    head_name = "head.fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patch_embed = OverlappingPatches(config.in_chans, config.embed_dim)
        self.num_prefix_tokens = int(config.use_cls_token)
        if config.use_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        shapes = stage_shapes(config.embed_dim, config.num_heads, config.depths, config.expand_attn)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList([Stage(stage, [next(rates) for _ in stage], config.img_size) for stage in shapes])
        self.num_features = shapes[-1][-1].out
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Module()
        self.reset_classifier(config.num_classes)
        self.init_weights()
        self.release_keys = self.keys_of_release()

    def keys_of_release(self) -> tuple[tuple[str, str], ...]:
        """The authors number all blocks in one row, and call `proj` what stands beside attention or MLP."""
        places = [f"stages.{s}.blocks.{b}" for s, depth in enumerate(self.config.depths) for b in range(depth)]
        beside = "shortcut_proj_attn" if self.config.expand_attn else "shortcut_proj_mlp"
        rules = [(r"head\.projection\.(.+)", r"head.fc.\1")]
        for number, place in enumerate(places):
            rules.append((rf"blocks\.{number}\.proj\.(.+)", rf"{place}.{beside}.\1"))
            rules.append((rf"blocks\.{number}\.(.+)", rf"{place}.\1"))
        return tuple(rules)

    def init_weights(self) -> None:
        """The authors' initialisation: a deviation of 0.02 for matrices, tables and token."""
        init_truncated_normal(self)
        for name in self.no_weight_decay():
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.patch_embed(images)
        if self.num_prefix_tokens:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x, grid

    def stage_blocks(self) -> list[Sequence[nn.Module]]:
        return [list(stage.blocks) for stage in self.stages]  # type: ignore[arg-type]
