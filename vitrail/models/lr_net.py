"""Local Relation Networks for Image Recognition. Hu, Zhang, Xie and Lin, ICCV 2019, arXiv 1904.11491.

Idea      a convolution has the same weights everywhere; here the weights of the 7 x 7 positions around a pixel come
          from how well each composes with it, one number a position, and from a learned prior of the offset.
Differs   from ResNet: so in place of every spatial convolution, the stem's too; from local attention: queries and keys
          are single numbers, shared by 8 channels, values are the map itself.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7)
          -> (B,K); each position of each map: a group of 8 channels, 1 query, 49 keys
Lecture   attention inside convolutional networks

Similarity is -(q - k)^2 (equation 5). The layer follows the authors' released kernel: a position outside the map has
similarity -100 and value 0, queries are read at the strided positions, group g has channels 8 g to 8 g + 7.

The widths inside blocks, 100 to 800, are NOT VERIFIED, nor are the 1 x 1 convolution after the aggregation (figure 2),
the hidden width of the prior (as many as groups) and the stem's order: no network definition was released. Where 8 does
not divide a width, the last group is smaller. The counts come near the printed ones (14.7, 23.3 and 42.0 M parameters;
2.6, 4.3 and 7.79 G): below is what is counted here.

    variant                  params   FLOPs   top-1     ImageNet-1k
    lr_net26                  14.6M   2.47G    75.7
    lr_net50                  23.4M   4.16G    77.3
    lr_net101                 40.8M   7.69G    78.5
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import attend, place
from vitrail.models.attention_resnet import AttentionResNet, Grid
from vitrail.models.sasa_resnet import bordered, folded, neighbourhood_places, neighbourhoods


@dataclass(frozen=True)
class Config:
    """Depths, widths of the stem, inside the blocks of the first stage and of what leaves them, channels a group, side
    of the window."""

    depths: tuple[int, int, int, int]
    stem_width: int = 64
    base_width: int = 100
    out_width: int = 256
    group_width: int = 8
    kernel_size: int = 7
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "lr_net26": Config((2, 2, 2, 2)),
    "lr_net50": Config((3, 4, 6, 3)),
    "lr_net101": Config((3, 4, 23, 3)),
}

OUTSIDE = 100.0  # a position outside the map counts as this unlike


class GeometricPrior(nn.Module):
    """What an offset says, before any picture is seen: -> (side * side, groups), section 3.2."""

    offsets: Tensor

    def __init__(self, groups: int, side: int):
        super().__init__()
        self.hidden = nn.Conv2d(2, groups, kernel_size=1)
        self.relu = nn.ReLU()
        self.out = nn.Conv2d(groups, groups, kernel_size=1, bias=False)  # a bias would vanish in the softmax
        steps = torch.arange(side).float() - side // 2
        self.register_buffer("offsets", torch.stack(torch.meshgrid(steps, steps, indexing="xy")), persistent=False)

    def forward(self) -> Tensor:
        return self.out(self.relu(self.hidden(self.offsets[None])))[0].flatten(1).T


class LocalRelation(nn.Module):
    """Each strided position takes a mean of the map around it: (B, C, H, W) -> (B, C, H/stride, W/stride), figure 2.

    m = `group_width` channels share G = ceil(C / m) weights; M = side * side.
    """

    def __init__(self, dim: int, group_width: int, side: int, stride: int):
        super().__init__()
        if side % 2 == 0:
            raise UserError(f"kernel_size {side} has no position in its middle; take 3, 5, 7 or 9")
        self.dim, self.group_width, self.side, self.stride = dim, group_width, side, stride
        self.groups = -(-dim // group_width)
        self.query = nn.Conv2d(dim, self.groups, kernel_size=1, bias=False)
        self.key = nn.Conv2d(dim, self.groups, kernel_size=1, bias=False)
        self.prior = GeometricPrior(self.groups, side)
        self.proj = nn.Conv2d(dim, dim, kernel_size=1, bias=False)

    def vectors(self, *parts: Tensor) -> Tensor:
        """Four numbers a group, (B, G, H, W) each, side by side with zeros up to the width of the values, for which
        attention has its fastest kernels: -> (B, H, W, G * m)."""
        x = torch.stack(parts, dim=-1).permute(0, 2, 3, 1, 4)
        return F.pad(x, (0, max(self.group_width - len(parts), 0))).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        stride, side, grid = self.stride, self.side, (x.shape[-2], x.shape[-1])
        q, k = self.query(x[:, :, ::stride, ::stride]), self.key(x)
        asking = q.shape[-2], q.shape[-1]
        # softmax ignores q^2, which all keys share: -(q - k)^2 becomes 2 q k - k^2, and q^2 - OUTSIDE outside the map,
        # the product of (2 q, -1, q^2 - OUTSIDE, 1) and (k, k^2, outside, prior)
        one = torch.ones_like(q)
        queries = self.vectors(2 * q, -one, q.square() - OUTSIDE, one)
        reach = [side // 2] * 4
        k, outside = F.pad(k, reach), 1 - F.pad(torch.ones_like(k), reach)
        keys = neighbourhoods(self.vectors(k, k.square(), outside, torch.zeros_like(k)), side, stride)
        keys.view(*keys.shape[:-1], self.groups, -1)[..., 3].add_(self.prior())
        channels = F.pad(x, (0, 0, 0, 0, 0, self.groups * self.group_width - self.dim)).permute(0, 2, 3, 1)
        values = neighbourhoods(bordered(channels, side), side, stride)
        place(self, lambda: neighbourhood_places(grid, side, stride, x.device))
        q, k, v = (folded(part, self.groups) for part in (queries[:, :, :, None], keys, values))
        y = attend(q, k, v, site=self, scale=1.0).flatten(1)[:, : self.dim]  # (B H' W', C)
        return self.proj(y.unflatten(0, (-1, *asking)).permute(0, 3, 1, 2))


class Model(AttentionResNet):
    """LR-Net: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, self.relation, width=config.base_width, stem_width=config.stem_width)

    def relation(self, _stage: int, width: int, stride: int, _grid: Grid) -> nn.Module:
        """The spatial operator of every block."""
        return LocalRelation(width, self.config.group_width, self.config.kernel_size, stride)

    def out_channels(self, width: int) -> int:
        """256 where the inside is 100 wide."""
        return self.config.out_width * width // self.config.base_width

    def make_stem(self) -> None:
        """A 1 x 1 convolution, then local relations of stride 2 where ResNet has its 7 x 7."""
        super().make_stem()
        width = self.stem_width
        self.conv1 = nn.Sequential(
            nn.Conv2d(self.config.in_chans, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            self.relation(0, width, 2, (self.config.img_size, self.config.img_size)),
        )

    def init_weights(self) -> None:
        """ResNet's; queries and keys by their fan-in, so that they differ by about 1."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, LocalRelation):
                nn.init.normal_(module.query.weight, std=module.dim**-0.5)
                nn.init.normal_(module.key.weight, std=module.dim**-0.5)
