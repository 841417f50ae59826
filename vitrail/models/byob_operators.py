"""What stands in a block of timm's attention ResNets (`byob_attention.py`): global attention, halo attention, lambdas.

Each is built from (width, stride, grid of its input) and maps (B, D, H, W) -> (B, D, H/stride, W/stride), strides by a
2 x 2 mean at its end.

Halo attention (Vaswani et al., CVPR 2021, arXiv 2103.12731, section 2.2): queries of a block of 8 x 8 positions ask
those of a window of 14 x 14 around it, with learned vectors for offsets of row and column, as in BoTNet. Beyond the
border keys and values are zeros that take part in the softmax, as in timm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, attend, global_places, place
from vitrail.layers.position import relative_index
from vitrail.layers.tokens import join_windows, windows
from vitrail.models.attention_resnet import Grid
from vitrail.models.botnet import RelativeTables
from vitrail.models.lambda_resnet import apply_lambdas


def mean2x2(stride: int) -> nn.Module:
    """What strides after an operator."""
    return nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()


class GlobalAttention(nn.Module):
    """`bot`: every position asks all, (B, D, H, W) -> (B, D, H/stride, W/stride); `dim_head` is that of the queries."""

    def __init__(self, dim: int, stride: int, grid: Grid, dim_head: int = 0, num_heads: int = 4):
        super().__init__()
        self.num_heads = num_heads
        dim_head = dim_head or dim // num_heads
        self.sizes = num_heads * dim_head, num_heads * dim_head, dim
        self.qkv = nn.Conv2d(dim, sum(self.sizes), kernel_size=1, bias=False)
        self.pos_embed = RelativeTables(grid, dim_head)
        self.pool = mean2x2(stride)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[-2], x.shape[-1]
        parts = self.qkv(x).flatten(2).split(self.sizes, dim=1)
        q, k, v = (part.unflatten(1, (self.num_heads, -1)).transpose(2, 3) for part in parts)  # (B, h, N, d)
        place(self, lambda: global_places(grid, grid))
        x = attend(q, k, v, site=self, bias=self.pos_embed(q, grid))
        return self.pool(x.transpose(2, 3).flatten(1, 2).unflatten(2, grid))


class HaloTables(nn.Module):
    """As BoTNet's tables, for keys of a window: queries (B, h, b * b, d) -> logits (B, h, b * b, w * w)."""

    def __init__(self, block: int, window: int, dim: int):
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * window - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * window - 1, dim))
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=dim**-0.5)
        offsets = torch.arange(window)[None, :] - torch.arange(block)[:, None] + window - 1
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor

    def forward(self, q: Tensor) -> Tensor:
        q = q.unflatten(2, (len(self.offsets), -1))
        down = torch.einsum("bhyxd,yzd->bhyxz", q, self.height_rel[self.offsets])
        across = torch.einsum("bhyxd,xzd->bhyxz", q, self.width_rel[self.offsets])
        return (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)


class HaloAttention(nn.Module):
    """`halo`: blocks of positions ask a window around them, (B, D, H, W) -> (B, D, H/stride, W/stride)."""

    def __init__(self, dim: int, stride: int, grid: Grid, block: int = 8, halo: int = 3, num_heads: int = 8):
        super().__init__()
        if grid[0] % block or grid[1] % block:
            raise UserError(
                f"a map of {grid[0]}x{grid[1]} is not divisible into halo attention's blocks of {block}x{block}; "
                f"choose an img_size that is a multiple of 128"
            )
        self.num_heads, self.block, self.halo = num_heads, block, halo
        self.q = nn.Conv2d(dim, dim, kernel_size=1, bias=False)
        self.kv = nn.Conv2d(dim, 2 * dim, kernel_size=1, bias=False)
        self.pos_embed = HaloTables(block, block + 2 * halo, dim // num_heads)
        self.pool = mean2x2(stride)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[-2], x.shape[-1]
        q = windows(self.q(x).permute(0, 2, 3, 1), self.block, self.block)  # (B * G, b * b, D)
        q = q.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        kv = self.surroundings(F.pad(self.kv(x), [self.halo] * 4))  # (B * G, w * w, 2 D)
        k, v = kv.unflatten(2, (self.num_heads, -1)).transpose(1, 2).chunk(2, dim=-1)
        place(self, lambda: self.places(grid, x.device))
        x = attend(q, k, v, site=self, bias=self.pos_embed(q))
        x = join_windows(x.transpose(1, 2).flatten(2), self.block, self.block, grid)
        return self.pool(x.permute(0, 3, 1, 2))

    def surroundings(self, x: Tensor) -> Tensor:
        """Windows around the blocks, of maps with their halo: (B, D, H + 2 halo, W + 2 halo) -> (B * G, w * w, D)."""
        side = self.block + 2 * self.halo
        x = x.unfold(2, side, self.block).unfold(3, side, self.block)  # (B, D, H/b, W/b, w, w)
        return x.permute(0, 2, 3, 4, 5, 1).reshape(-1, side * side, x.shape[1])

    def places(self, grid: Grid, device: torch.device) -> Places:
        """The blocks of the picture and their windows, which hang over its border."""
        cells = torch.arange(grid[0] * grid[1], device=device).view(1, *grid, 1)
        asked = self.surroundings(F.pad(cells[..., 0][None], [self.halo] * 4, value=-1))[..., 0]
        return Places(windows(cells, self.block, self.block)[..., 0], asked[:, None], grid, (grid,))


class LambdaAttention(nn.Module, ABC):
    """Lambdas of contents and positions, (B, D, H, W) -> (B, D, H/stride, W/stride); how positions enter differs."""

    def __init__(self, dim: int, stride: int, dim_head: int = 16, num_heads: int = 4):
        super().__init__()
        self.num_heads = num_heads
        self.sizes = num_heads * dim_head, dim_head, dim // num_heads
        self.qkv = nn.Conv2d(dim, sum(self.sizes), kernel_size=1, bias=False)
        self.norm_q = nn.BatchNorm2d(num_heads * dim_head)
        self.norm_v = nn.BatchNorm2d(dim // num_heads)
        self.pool = mean2x2(stride)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(self.sizes, dim=1)
        q = self.norm_q(q).flatten(2).unflatten(1, (self.num_heads, -1))
        v = self.norm_v(v)
        out = apply_lambdas(q, k.flatten(2)[:, None], v.flatten(2)[:, None], self.position(v))
        return self.pool(out.unflatten(2, x.shape[-2:]))

    @abstractmethod
    def position(self, v: Tensor) -> Tensor:
        """The lambda of each position from the values around it: (B, v, H, W) -> (B, k, v, N)."""


class ConvLambda(LambdaAttention):
    """`lambda9`, `lambda13`: positions within a window, by a convolution."""

    def __init__(self, dim: int, stride: int, side: int):
        super().__init__(dim, stride)
        self.conv_lambda = nn.Conv3d(1, self.sizes[1], kernel_size=(side, side, 1))
        nn.init.trunc_normal_(self.conv_lambda.weight, std=self.sizes[1] ** -0.5)

    def position(self, v: Tensor) -> Tensor:
        # values as the third dimension before the picture's two, so that nothing is transposed but the kernel
        kernel = self.conv_lambda.weight.permute(0, 1, 4, 2, 3)
        around = kernel.shape[-1] // 2
        return F.conv3d(v[:, None], kernel, self.conv_lambda.bias, padding=(0, around, around)).flatten(3)


class TableLambda(LambdaAttention):
    """`lambda`: all positions of the map, by a table of offsets."""

    def __init__(self, dim: int, stride: int, grid: Grid):
        super().__init__(dim, stride)
        self.pos_emb = nn.Parameter(torch.empty(2 * grid[0] - 1, 2 * grid[1] - 1, self.sizes[1]))
        nn.init.trunc_normal_(self.pos_emb, std=0.02)
        self.register_buffer("index", relative_index(*grid).t(), persistent=False)  # key - query
        self.index: Tensor

    def position(self, v: Tensor) -> Tensor:
        return torch.einsum("nmk,bvm->bkvn", self.pos_emb.flatten(0, 1)[self.index], v.flatten(2))


OPERATORS: dict[str, Callable[[int, int, Grid], nn.Module]] = {
    "bot": GlobalAttention,
    "bot16": lambda dim, stride, grid: GlobalAttention(dim, stride, grid, dim_head=16),
    "halo": HaloAttention,
    "lambda9": lambda dim, stride, _grid: ConvLambda(dim, stride, 9),
    "lambda13": lambda dim, stride, _grid: ConvLambda(dim, stride, 13),
    "lambda": TableLambda,
}
FIXED = {"bot", "bot16", "lambda"}
"""Those whose tables fit one size of the map."""
