"""Stand-Alone Self-Attention in Vision Models. Ramachandran, Parmar, Vaswani, Bello, Levskaya and Shlens, NeurIPS 2019,
arXiv 1906.05909.

Idea      every spatial convolution of a ResNet becomes attention: a position asks the 7 x 7 positions around it, and
          the logits know where in that window a key lies.
Differs   from ResNet: so in all stages, in the `_full` networks in the stem too; from the transformer: a window that
          moves with its query, no MLP, no position but the offset.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7)
          -> (B,K); each position of each map: 8 heads, 1 query, 49 keys
Lecture   attention inside convolutional networks

Logits are not divided by the square root of the width (equations 2 and 3). Offsets in rows and in columns have a vector
of half a head's width each, shared by the heads; no projection follows, since the block's last convolution mixes the
heads. A block that strides attends at full resolution, then takes means over 2 x 2. The paper does not say what happens
at the border: here, as in others' code, the map goes on as zeros, so a key outside has value 0 and a logit made of its
offset alone. Queries, keys and values come from dense matrices: the printed counts fit these, not the text's matrices a
head. No code was released.

The stem of a `_full` network attends inside 4 x 4 pixels, 4 heads, and a value's matrix depends on its place there
(section 3.3 and appendix): a mixture of 4 matrices, a number not printed; its logits are contents alone.

    variant                  params   FLOPs   top-1     ImageNet-1k; FLOPs as counted here, multiply-adds; the paper
    sasa_resnet26             10.3M   2.19G    75.8     counts an addition apart: 4.5, 5.7, 7.0, 4.7, 6.0 and 7.2 G
    sasa_resnet38             14.2M   2.79G    77.1
    sasa_resnet50             18.0M   3.39G    77.4
    sasa_resnet26_full        10.3M   2.20G    74.8
    sasa_resnet38_full        14.2M   2.80G    76.9
    sasa_resnet50_full        18.0M   3.40G    77.6
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, attend, normalised, place
from vitrail.layers.tokens import divided, join_windows, windows
from vitrail.models.attention_resnet import AttentionResNet, Grid


@dataclass(frozen=True)
class Config:
    """What tables 1 and 3 vary: depths, the kind of stem, the side of the window; `base_width` is the first stage's."""

    depths: tuple[int, int, int, int]
    attention_stem: bool = False
    kernel_size: int = 7
    num_heads: int = 8
    base_width: int = 64
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


R26, R38, R50 = (1, 2, 4, 1), (2, 3, 5, 2), (3, 4, 6, 3)

VARIANTS = {
    "sasa_resnet26": Config(R26),
    "sasa_resnet38": Config(R38),
    "sasa_resnet50": Config(R50),
    "sasa_resnet26_full": Config(R26, attention_stem=True),
    "sasa_resnet38_full": Config(R38, attention_stem=True),
    "sasa_resnet50_full": Config(R50, attention_stem=True),
}


def bordered(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) with as many zeros around as a side x side window reaches out."""
    return F.pad(x, (0, 0, *[side // 2] * 4))


def neighbourhoods(x: Tensor, side: int, stride: int = 1) -> Tensor:
    """What lies around every `stride`-th position of a bordered map, gathered: -> (B, H', W', side * side, C)."""
    return x.unfold(1, side, stride).unfold(2, side, stride).movedim(3, -1).flatten(3, 4)


def folded(x: Tensor, num_heads: int) -> Tensor:
    """Each position a sample of its own: (B, H, W, M, D) -> (B H W, h, M, d)."""
    return x.flatten(0, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def neighbourhood_places(grid: Grid, side: int, stride: int, device: torch.device) -> Places:
    """Places of a site where every `stride`-th position asks the side x side positions around it, one fold each."""
    numbers = torch.arange(1, grid[0] * grid[1] + 1, device=device).view(1, *grid, 1)
    around = neighbourhoods(bordered(numbers, side), side, stride) - 1  # zeros, which stand outside, become -1
    asking = -(-grid[0] // stride), -(-grid[1] // stride)
    cells = torch.arange(asking[0] * asking[1], device=device)
    return Places(cells[:, None], around.view(len(cells), 1, -1), asking, (grid,))


class LocalAttention(nn.Module):
    """Each position asks the side x side positions around it: (B, D, H, W) -> (B, D, H/stride, W/stride), figure 3."""

    def __init__(self, dim: int, num_heads: int, side: int, stride: int):
        super().__init__()
        if side % 2 == 0 or side < 3:
            raise UserError(f"kernel_size {side} has no position in its middle; take 3, 5, 7, 9 or 11")
        if dim % num_heads or dim < 2 * num_heads:
            raise UserError(f"width {dim} does not give {num_heads} heads two channels or more; change base_width")
        self.num_heads = num_heads
        self.side = side
        head = dim // num_heads
        self.qkv = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)
        self.rel_h = nn.Parameter(torch.empty(side, head // 2))
        self.rel_w = nn.Parameter(torch.empty(side, head - head // 2))
        nn.init.normal_(self.rel_h, std=head**-0.5)
        nn.init.normal_(self.rel_w, std=head**-0.5)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def offsets(self) -> Tensor:
        """The vector of each place in the window, (M, D), the same for all heads."""
        rows = self.rel_h[:, None].expand(-1, self.side, -1)
        columns = self.rel_w[None].expand(self.side, -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(0, 1).repeat(1, self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[-2], x.shape[-1]
        q, k, v = self.qkv(x).permute(0, 2, 3, 1).chunk(3, dim=-1)  # (B, H, W, D) each
        place(self, lambda: neighbourhood_places(grid, self.side, 1, x.device))
        keys, values = (neighbourhoods(bordered(part, self.side), self.side) for part in (k, v))  # (B, H, W, M, D)
        keys.add_(self.offsets())  # q k + q r = q (k + r), without logits of their own for the offsets
        q, k, v = (folded(part, self.num_heads) for part in (q[:, :, :, None], keys, values))
        y = attend(q, k, v, site=self, scale=1.0)  # (B H W, h, 1, d)
        return self.pool(y.flatten(1).unflatten(0, (-1, *grid)).permute(0, 3, 1, 2))


class AttentionStem(nn.Module):
    """Attention inside 4 x 4 pixels, a value's matrix by its place there: (B, C, H, W) -> (B, D, H, W)."""

    side = 4

    def __init__(self, in_chans: int, dim: int, num_heads: int = 4, mixtures: int = 4):
        super().__init__()
        self.num_heads = num_heads
        self.qk = nn.Linear(in_chans, 2 * dim, bias=False)
        self.v = nn.Parameter(torch.empty(mixtures, dim, in_chans))
        self.row = nn.Parameter(torch.empty(self.side, dim // num_heads))
        self.column = nn.Parameter(torch.empty(self.side, dim // num_heads))
        self.mixture = nn.Parameter(torch.empty(mixtures, dim // num_heads))
        for table in (self.row, self.column, self.mixture):
            nn.init.normal_(table, std=(dim // num_heads) ** -0.5)
        for matrix in (self.qk.weight, self.v):
            nn.init.normal_(matrix, std=in_chans**-0.5)

    def matrices(self) -> Tensor:
        """W_V of each of the 16 places, (16, D, C): a mean of all, weighed by what the place says."""
        places = (self.row[:, None] + self.column[None]).flatten(0, 1)
        return torch.einsum("nm,mdc->ndc", normalised(places @ self.mixture.T, dim=-1), self.v)

    def places(self, grid: Grid, device: torch.device) -> Places:
        """Where the pixels of each window lie."""
        pixels = torch.arange(grid[0] * grid[1], device=device).view(1, *grid, 1)
        cells = windows(pixels, self.side, self.side)[..., 0]
        return Places(cells, cells[:, None], grid, (grid,))

    def forward(self, images: Tensor) -> Tensor:
        grid = images.shape[-2], images.shape[-1]
        divided(*grid, self.side, "window of the stem")
        place(self, lambda: self.places(grid, images.device))
        x = windows(images.permute(0, 2, 3, 1), self.side, self.side)  # (G, 16, C)
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        v = torch.einsum("gnc,ndc->gnd", x, self.matrices()).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        y = attend(q, k, v, site=self, scale=1.0).transpose(1, 2).flatten(2)
        return join_windows(y, self.side, self.side, grid).permute(0, 3, 1, 2)


class Model(AttentionResNet):
    """A ResNet of local attention: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, self.attention, width=config.base_width)

    def attention(self, _stage: int, width: int, stride: int, _grid: Grid) -> nn.Module:
        """The spatial operator of every block."""
        return LocalAttention(width, self.config.num_heads, self.config.kernel_size, stride)

    def make_stem(self) -> None:
        """ResNet's, or attention, norm and the maximum of each 4 x 4 pixels."""
        super().make_stem()
        if self.config.attention_stem:
            self.conv1 = AttentionStem(self.config.in_chans, self.stem_width)
            self.relu = nn.Identity()
            self.maxpool = nn.MaxPool2d(AttentionStem.side)

    def no_weight_decay(self) -> set[str]:
        """Vectors of offsets and places."""
        tables = ("rel_h", "rel_w", "conv1.row", "conv1.column", "conv1.mixture")
        return {name for name, _ in self.named_parameters() if name.endswith(tables)}
