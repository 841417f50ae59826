"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. Liu et al., ICCV 2021, arXiv 2103.14030.

Idea      attention inside w x w windows, shifted by w/2 every other block: cost linear in pixels.
Differs   from ViT: four stages, no class token, relative position bias, tokens merged 2 x 2 between stages.
Shapes    (B,3,224,224) -patch 4-> (B,56,56,96) -merge-> (B,28,28,192) -> (B,14,14,384) -> (B,7,7,768) -> (B,K)
Lecture   hierarchical transformers

Window and shift follow from `img_size`: a window never exceeds the map of its stage, and where one window covers the
map nothing is shifted (stage 4). Other images are taken on the fly with these windows: maps that they do not divide
are padded at the lower right, after the shift, as timm does; padding is attended to, as in the released code. The
paper trains with stochastic depth 0.2 (T), 0.3 (S), 0.5 (B), 0.2 (L). Top-1 is what the release reports, T and S 0.1
beside the paper; L was first trained on ImageNet-22k.

    variant                          params   FLOPs   top-1     ImageNet-1k; FLOPs are multiply-adds
    swin_tiny_patch4_window7_224      28.3M   4.49G    81.2
    swin_small_patch4_window7_224     49.6M   8.74G    83.2
    swin_base_patch4_window7_224      87.8M   15.4G    83.5
    swin_base_patch4_window12_384     87.9M   47.1G    84.5
    swin_large_patch4_window7_224    196.5M   34.5G    86.3
    swin_large_patch4_window12_384   196.7M  103.9G    87.3
    swin_nano_patch4_window4_32        400K    7.9M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers import tokens
from vitrail.layers.attention import Places, attend, place
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal
from vitrail.layers.position import relative_index
from vitrail.layers.tokens import join_windows, windows
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What Table 7 varies: `depths` and `num_heads` by stage; the width doubles from stage to stage."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 7
    img_size: int = 224
    patch_size: int = 4
    mlp_ratio: float = 4.0
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


TINY = 96, (2, 2, 6, 2), (3, 6, 12, 24)
SMALL = 96, (2, 2, 18, 2), (3, 6, 12, 24)
BASE = 128, (2, 2, 18, 2), (4, 8, 16, 32)
LARGE = 192, (2, 2, 18, 2), (6, 12, 24, 48)

VARIANTS = {
    "swin_tiny_patch4_window7_224": Config(*TINY),
    "swin_small_patch4_window7_224": Config(*SMALL),
    "swin_base_patch4_window7_224": Config(*BASE),
    "swin_base_patch4_window12_384": Config(*BASE, window_size=12, img_size=384),
    "swin_large_patch4_window7_224": Config(*LARGE),
    "swin_large_patch4_window12_384": Config(*LARGE, window_size=12, img_size=384),
    "swin_nano_patch4_window4_32": Config(48, (2, 2), (3, 6), window_size=4, img_size=32),
}


def shifted_windows(x: Tensor, side: int, shift: int) -> Tensor:
    """Roll a map (B, H, W, D) up and left by `shift`, pad it with zeros, and cut it: -> (B * G, side * side, D)."""
    height, width = x.shape[1:3]
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    if height % side or width % side:
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    return windows(x, side, side)


def join_shifted_windows(x: Tensor, side: int, shift: int, grid: tuple[int, int]) -> Tensor:
    """Undo `shifted_windows`: (B * G, side * side, D) -> (B, H, W, D) for a map of `grid` H x W."""
    height, width = grid
    padded = height + -height % side, width + -width % side
    x = join_windows(x, side, side, padded)
    if padded != grid:
        x = x[:, :height, :width]
    return x.roll((shift, shift), (1, 2)) if shift else x


def shift_mask(side: int, shift: int, grid: tuple[int, int]) -> Tensor:
    """What keeps apart tokens that only the roll made neighbours (figure 4): (G, 1, N, N), 0 or -1000.

    The rolled map of `grid` H x W is cut at `side` and at `shift` from its lower and right ends into 3 x 3 regions;
    tokens of a window attend inside their region. The release's -100 leaves weights of e^-100, no normal float32:
    products with such numbers take a CPU four times as long.
    """
    rows, columns = (torch.arange(length + -length % side) for length in grid)
    rows = (rows >= len(rows) - side).long() + (rows >= len(rows) - shift)
    columns = (columns >= len(columns) - side).long() + (columns >= len(columns) - shift)
    region = windows((3 * rows[:, None] + columns)[None, :, :, None], side, side)  # (G, N, 1)
    return -1000.0 * (region != region.transpose(1, 2)).float()[:, None]


def places_of_windows(side: int, shift: int, grid: tuple[int, int]) -> Places:
    """Where the tokens of `shifted_windows` lie on a map of `grid` H x W."""
    cells = torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)
    cells = shifted_windows(cells, side, shift)[..., 0] - 1  # padding: -1
    return Places(cells, cells[:, None], grid, (grid,))


class WindowAttention(nn.Module):
    """W-MSA and SW-MSA (section 3.2): attention inside the windows of a map, (B, H, W, D) -> (B, H, W, D).

    `grid` is the side of the map that window and shift are chosen for; others are taken too.
    """

    qk_scale: float | None = None

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, grid: int):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"embed_dim {dim} of a stage is not divisible by its num_heads {num_heads}; change one")
        self.num_heads = num_heads
        self.window_size = min(window_size, grid)
        self.shift = window_size // 2 if shifted and grid > window_size else 0
        self.grid = grid, grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.make_positions()
        index = relative_index(self.window_size, self.window_size)
        mask = shift_mask(self.window_size, self.shift, self.grid) if self.shift else None
        self.register_buffer("relative_position_index", index, persistent=False)
        self.register_buffer("attn_mask", mask, persistent=False)

    def make_positions(self) -> None:
        """The table of biases, one for each offset of two positions in a window."""
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * self.window_size - 1) ** 2, self.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_table(self) -> Tensor:
        """What an offset adds to the logits, ((2 w - 1) ** 2, h)."""
        return self.relative_position_bias_table

    def position_bias(self) -> Tensor:
        """What the offset of query and key adds to the logits: (1, h, N, N)."""
        index = self.get_buffer("relative_position_index")  # by columns: a gather of rows would need a transposed copy
        return self.position_table().T.index_select(1, index.flatten()).unflatten(1, index.shape)[None]

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Positions and, where the windows are shifted, mask: (1, h, N, N) or (G, h, N, N)."""
        bias = self.position_bias()
        if not self.shift:
            return bias
        if grid == self.grid:
            mask = self.get_buffer("attn_mask")
        else:
            mask = shift_mask(self.window_size, self.shift, grid).to(bias)
        return bias + mask

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B * G, N, D) -> (B * G, h, N, d) three times."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        place(self, lambda: places_of_windows(self.window_size, self.shift, grid))
        x = shifted_windows(x, self.window_size, self.shift)
        q, k, v = self.queries_keys_values(x)
        x = attend(q, k, v, site=self, bias=self.bias(grid), scale=self.qk_scale)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return join_shifted_windows(x, self.window_size, self.shift, grid)


def neighbours(x: Tensor) -> Tensor:
    """Put the 2 x 2 neighbours beside each other, column by column: (B, H, W, D) -> (B, H/2, W/2, 4 D).

    Odd sides are padded with zeros.
    """
    height, width = x.shape[1:3]
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(nn.Module):
    """2 x 2 tokens to one of twice the width (section 3.1): (B, H, W, D) -> (B, H/2, W/2, 2 D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbours(x)))


class PatchEmbed(tokens.PatchEmbed):
    """Patches as a map, each normalised: (B, C, H, W) -> (B, H/P, W/P, D)."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__(patch_size, in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        self.grid(*images.shape[-2:])
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Merging, but for the first stage, then blocks: (B, H, W, D) -> (B, H/2, W/2, 2 D)."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Model(Classifier):
    """Swin: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them. Raises UserError where it does not.
    """

    blocks_are = r"layers\.\d+\.blocks\.\d+"
    channels_last = True
    head_name = "head.fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim)
        side, _ = self.patch_embed.grid(config.img_size, config.img_size)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        dim = config.embed_dim
        self.layers = nn.Sequential()
        for stage, depth in enumerate(config.depths):
            downsample: nn.Module = nn.Identity()
            if stage:
                downsample = self.make_merging(dim)
                side, dim = -(-side // 2), 2 * dim
            blocks = [self.make_block(stage, dim, bool(i % 2), side, next(rates)) for i in range(depth)]
            self.layers.append(Stage(downsample, blocks))
        self.num_features = dim
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential()
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def make_merging(self, dim: int) -> nn.Module:
        """Between two stages: (B, H, W, dim) -> (B, H/2, W/2, 2 dim)."""
        return PatchMerging(dim)

    def make_block(self, stage: int, dim: int, shifted: bool, side: int, drop_path: float) -> nn.Module:
        """A block on maps (B, side, side, dim)."""
        attn = WindowAttention(dim, self.config.num_heads[stage], self.config.window_size, shifted, side)
        return Block(dim, attn, Mlp(dim, int(dim * self.config.mlp_ratio)), drop_path, eps=1e-5)

    def init_weights(self) -> None:
        """Linear weights from truncated normals of deviation 0.02, biases 0, as in the release."""
        init_truncated_normal(self)

    def no_weight_decay(self) -> set[str]:
        """The tables of position biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/32, W/32): the last stage's map, normalised."""
        return self.norm(self.layers(self.patch_embed(images))).permute(0, 3, 1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean((-2, -1))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The map of each stage (B, D, H/s, W/s), strides s = 4, 8, 16 and 32, before the last norm."""
        maps = [self.patch_embed(images)]
        for stage in self.layers:
            maps.append(stage(maps[-1]))
        return [x.permute(0, 3, 1, 2) for x in maps[1:]]
