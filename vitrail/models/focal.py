"""Focal Self-attention for Local-Global Interactions in Vision Transformers. Yang et al., NeurIPS 2021,
arXiv 2107.00641.

Idea      look closely at what is near and coarsely at what is far: a window of queries attends to itself, to a ring of
          tokens around it and to summaries of the windows around it, all in one softmax.
Differs   from Swin: nothing is shifted; each of those three sets of keys has its own table of position biases; tokens
          are merged by a 2 x 2 convolution, its norm after it.
Shapes    (B,3,224,224) -patch 4-> (B,56,56,96) -> (B,28,28,192) -> (B,14,14,384) -> (B,7,7,768) -> (B,K)
          keys of a query: 49 + 132 + 49, 49 + 132 + 25, 49 + 132 + 9, 49 + 1
Lecture   hierarchical transformers

As released, where the paper is silent: the ring wraps around the map's border without a mask; it is cut as four
corners, so 12 of its 132 cells come twice, each time with a bias of its own; a summary is one linear map over the 49
normalised tokens of a window, the same for all channels, and passes through the queries' own matrix. A window never
exceeds the map of its stage at `img_size`, and a stage of one window has no ring. Images of other sizes keep these
windows: maps are padded at the lower right with zeros, which are attended to (our extension: the released code takes
one size). The names with `useconv` overlap their patches: 7 x 7 / 4, then 3 x 3 / 2. The paper trains with stochastic
depth 0.2 (T), 0.3 (S), 0.5 (B).

    variant                      params   FLOPs   top-1     ImageNet-1k from scratch; FLOPs are multiply-adds, of
    focal_tiny_224                28.9M    4.9G    82.2     which the authors count 120 keys in a ring
    focal_small_224               51.1M    9.4G    83.6
    focal_base_224                89.8M   16.4G    84.0
    focal_tiny_useconv_224        30.8M    5.2G    82.7
    focal_small_useconv_224       53.1M    9.7G    83.8
    focal_base_useconv_224        93.3M   16.8G    84.2
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, attend, place
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal, residual
from vitrail.layers.position import relative_index
from vitrail.layers.tokens import divided, join_windows, windows
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the paper varies: `depths`, `num_heads` and `focal_windows` (summaries a side) by stage; the width doubles
    from stage to stage; `expand_size` is the width of the ring."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    use_conv_embed: bool = False
    window_size: int = 7
    expand_size: int = 3
    focal_windows: tuple[int, ...] = (7, 5, 3, 1)
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


TINY = 96, (2, 2, 6, 2), (3, 6, 12, 24)
SMALL = 96, (2, 2, 18, 2), (3, 6, 12, 24)
BASE = 128, (2, 2, 18, 2), (4, 8, 16, 32)

VARIANTS = {
    "focal_tiny_224": Config(*TINY),
    "focal_small_224": Config(*SMALL),
    "focal_base_224": Config(*BASE),
    "focal_tiny_useconv_224": Config(*TINY, use_conv_embed=True),
    "focal_small_useconv_224": Config(*SMALL, use_conv_embed=True),
    "focal_base_useconv_224": Config(*BASE, use_conv_embed=True),
}

PATCH = 4


def fine_cells(window: int, ring: int) -> list[tuple[int, int]]:
    """Rows and columns, from a window's upper left, of its fine keys: its own, then what four diagonally moved windows
    see beyond it, lower right first. Cells in the middle of the ring's sides are seen twice."""
    inside = range(window)
    cells = list(product(inside, inside))
    for down, right in product((ring, -ring), repeat=2):
        moved = product(range(down, down + window), range(right, right + window))
        cells += [(row, column) for row, column in moved if row not in inside or column not in inside]
    return cells


def key_index(grid: tuple[int, int], window: int, ring: int, focal_window: int) -> Tensor:
    """For every window of a map of `grid` H x W, the tokens that it attends to: (G, M), counting the cells of the map,
    then the summaries, in reading order; -1 where a summary would lie outside."""
    high, wide = grid[0] // window, grid[1] // window
    offsets = torch.tensor(fine_cells(window, ring))
    rows = (torch.arange(0, grid[0], window)[:, None] + offsets[:, 0]) % grid[0]
    columns = (torch.arange(0, grid[1], window)[:, None] + offsets[:, 1]) % grid[1]
    fine = rows[:, None] * grid[1] + columns  # (H/w, W/w, fine keys)
    reach = torch.arange(focal_window) - focal_window // 2
    down = (torch.arange(high)[:, None] + reach)[:, None, :, None]
    across = (torch.arange(wide)[:, None] + reach)[None, :, None, :]
    coarse = grid[0] * grid[1] + down * wide + across
    outside = (down < 0) | (down >= high) | (across < 0) | (across >= wide)
    return torch.cat([fine, coarse.masked_fill(outside, -1).flatten(2)], dim=2).flatten(0, 1)


def far_index(window: int, focal_window: int) -> Tensor:
    """For each query of a window and each summary, the row of the table of their offsets: (N, focal_window ** 2)."""
    inside, reach = torch.arange(window), torch.arange(focal_window)
    offset = inside[:, None] - reach + focal_window - 1  # (w, f)
    rows = offset[:, None, :, None] * (window + focal_window - 1)
    return (rows + offset[None, :, None, :]).flatten(2).flatten(0, 1)


class FocalAttention(nn.Module):
    """Focal self-attention (section 3.2): a map (B, H, W, D) that windows divide and the windows' summaries
    (B, H/w, W/w, D) -> what is no padding of it, (B, *grid, D). Made for maps of `expected` H x W, it takes others."""

    def __init__(self, dim: int, num_heads: int, window: int, ring: int, focal_window: int, expected: tuple[int, int]):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"embed_dim {dim} of a stage is not divisible by its num_heads {num_heads}; change one")
        self.num_heads = num_heads
        self.window, self.ring, self.focal_window, self.expected = window, ring, focal_window, expected
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        if ring:
            beyond = len(fine_cells(window, ring)) - window**2
            self.relative_position_bias_table_to_neighbors = nn.Parameter(torch.empty(1, num_heads, window**2, beyond))
            nn.init.trunc_normal_(self.relative_position_bias_table_to_neighbors, std=0.02)
        far = nn.Parameter(torch.empty(num_heads, (window + focal_window - 1) ** 2))
        self.relative_position_bias_table_to_windows = nn.ParameterList([nn.init.trunc_normal_(far, std=0.02)])
        self.register_buffer("own", relative_index(window, window), persistent=False)
        self.register_buffer("far", far_index(window, focal_window), persistent=False)
        self.register_buffer("keys", key_index(expected, window, ring, focal_window), persistent=False)

    def bias(self, keys: Tensor) -> Tensor:
        """What the three tables add to the logits, summaries outside the map masked: (1 or G, h, N, M)."""
        tables = [self.relative_position_bias_table[self.get_buffer("own")].permute(2, 0, 1)]
        if self.ring:
            tables.append(self.relative_position_bias_table_to_neighbors[0])
        tables.append(self.relative_position_bias_table_to_windows[0][:, self.get_buffer("far")])
        bias = torch.cat(tables, dim=2)[None]
        if self.focal_window == 1:
            return bias
        return bias.masked_fill((keys < 0)[:, None, None], float("-inf"))

    def forward(self, x: Tensor, summaries: Tensor, grid: tuple[int, int]) -> Tensor:
        place(self, lambda: self.places(grid))
        _, high, wide, dim = x.shape
        keys = self.get_buffer("keys")
        if (high, wide) != self.expected:
            keys = key_index((high, wide), self.window, self.ring, self.focal_window).to(x.device)
        q, near = self.qkv(x).split((dim, 2 * dim), dim=-1)
        far = self.qkv(summaries)[..., dim:]
        tokens = torch.cat([near.flatten(1, 2), far.flatten(1, 2)], dim=1)
        tokens = tokens.index_select(1, keys.clamp(min=0).flatten())  # (B, G M, 2 D); one copy for all sets
        k, v = (
            tokens.unflatten(1, keys.shape)
            .unflatten(-1, (2, self.num_heads, -1))
            .permute(3, 0, 1, 4, 2, 5)
            .flatten(1, 2)
        )
        q = windows(q, self.window, self.window).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        x = attend(q, k, v, site=self, bias=self.bias(keys))  # (B G, h, N, d)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return join_windows(x, self.window, self.window, (high, wide))[:, : grid[0], : grid[1]]

    def places(self, grid: tuple[int, int]) -> Places:
        """Where queries and keys lie on a map of `grid` H x W, before padding, and on that of the summaries."""
        cells = torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)
        cells = padded(cells, self.window) - 1  # padding: -1
        high, wide = cells.shape[1:3]
        coarse = high // self.window, wide // self.window
        summaries = grid[0] * grid[1] + torch.arange(coarse[0] * coarse[1])
        known = torch.cat([cells.flatten(), summaries, torch.tensor([-1])])  # the last for what lies outside
        keys = known[key_index((high, wide), self.window, self.ring, self.focal_window)]
        return Places(windows(cells, self.window, self.window)[..., 0], keys[:, None], grid, (grid, coarse))


def padded(x: Tensor, window: int) -> Tensor:
    """A map (B, H, W, D) with zeros below and to the right, so that windows divide it."""
    high, wide = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -wide % window, 0, -high % window)) if high % window or wide % window else x


class FocalBlock(Block):
    """The plain block with focal attention on padded maps: (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, dim: int, attn: FocalAttention, drop_path: float):
        super().__init__(dim, attn, Mlp(dim, 4 * dim), drop_path, eps=1e-5)
        self.window = attn.window
        self.pool_layers = nn.ModuleList([nn.Linear(self.window**2, 1)])

    def summarised(self, x: Tensor) -> Tensor:
        """One token a window: (B, H, W, D) -> (B, H/w, W/w, D)."""
        tokens = self.pool_layers[0](windows(x, self.window, self.window).transpose(1, 2))
        return tokens.view(len(x), x.shape[1] // self.window, x.shape[2] // self.window, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, self.look, self.drop_path1)
        return residual(x, lambda x: self.mlp(self.norm2(x)), self.drop_path2)

    def look(self, x: Tensor) -> Tensor:
        """The first branch: (B, H, W, D) -> (B, H, W, D)."""
        high, wide = x.shape[1:3]
        y = padded(self.norm1(x), self.window)
        return self.attn(y, self.summarised(y), (high, wide))


class Embed(nn.Module):
    """A strided convolution and a norm of each token: (B, C, H, W) -> (B, H/s, W/s, D)."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks, then what makes the next stage's map: (B, H, W, D) -> its own map and (B, H/2, W/2, 2 D)."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(x)
        return x, self.downsample(x.permute(0, 3, 1, 2))


class Model(Classifier):
    """Focal transformer: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where 32 divides them. Raises UserError where it does not.
    """

    blocks_are = r"layers\.\d+\.blocks\.\d+"
    channels_last = True
    release_keys = ((r".+\.(relative_position_index\w*|valid_ind_rolled)", ""),)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.stride = PATCH * 2 ** (len(config.depths) - 1)
        divided(config.img_size, config.img_size, self.stride, "coarsest stride")
        stem, merge = ((7, 4, 2), (3, 2, 1)) if config.use_conv_embed else ((4, 4, 0), (2, 2, 0))
        self.patch_embed = Embed(config.in_chans, config.embed_dim, *stem)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        dim, side = config.embed_dim, config.img_size // PATCH
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            blocks = [self.make_block(stage, dim, side, next(rates)) for _ in range(depth)]
            last = stage == len(config.depths) - 1
            self.layers.append(Stage(blocks, nn.Identity() if last else Embed(dim, 2 * dim, *merge)))
            dim, side = (dim, side) if last else (2 * dim, side // 2)
        self.num_features = dim
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(config.num_classes)
        init_truncated_normal(self)

    def make_block(self, stage: int, dim: int, side: int, drop_path: float) -> nn.Module:
        """A block on maps (B, side, side, dim)."""
        config = self.config
        window, ring = min(config.window_size, side), config.expand_size if side > config.window_size else 0
        expected = side + -side % window, side + -side % window
        attn = FocalAttention(dim, config.num_heads[stage], window, ring, config.focal_windows[stage], expected)
        return FocalBlock(dim, attn, drop_path)

    def no_weight_decay(self) -> set[str]:
        """The tables of position biases."""
        return {name for name, _ in self.named_parameters() if "relative_position_bias_table" in name}

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each stage computes, (B, H/s, W/s, D)."""
        height, width = images.shape[-2:]
        divided(height, width, self.stride, "coarsest stride")
        x, found = self.patch_embed(images), []
        for stage in self.layers:
            own, x = stage(x)
            found.append(own)
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/32, W/32): the last stage's map, normalised."""
        return self.norm(self.maps(images)[-1]).permute(0, 3, 1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean((-2, -1))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The map of each stage (B, D, H/s, W/s), strides s = 4, 8, 16 and 32, before the last norm."""
        return [x.permute(0, 3, 1, 2) for x in self.maps(images)]
