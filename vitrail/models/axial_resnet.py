"""Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation. Wang, Zhu, Green, Adam, Yuille and Chen,
ECCV 2020, arXiv 2003.07853.

Idea      attend along each column, then along each row: two passes let every position hear every other, at the cost of
          H + W instead of H * W keys.
Differs   from stand-alone attention (`sasa_resnet.py`): the whole axis instead of a window, and offsets enter three
          times, with the query, with the key and as values; from ResNet: two passes replace the 3 x 3 convolution.
Shapes    (B,3,224,224) -stem-> (B,32,56,56) -> (B,128,56,56) -> (B,256,28,28) -> (B,512,14,14) -> (B,1024,7,7) -> (B,K)
Lecture   attention inside convolutional networks

The authors' PyTorch code, whose names these are (`hight_block` is theirs): a stem of convolutions, each of the three
terms of the logits and both of the output with its own batch norm, strides by a 2 x 2 mean after the pass along rows.
The paper strides each axis after its own pass, and its TensorFlow code counts offsets from the key. Tables of offsets
fit one size of the image. The paper's S is 12.4M with tables for longer axes.

    variant            params   FLOPs   top-1     ImageNet-1k, README of the release
    axial_resnet26_s     5.9M   1.81G    75.8
    axial_resnet50_s    11.6M   2.84G       -
    axial_resnet50_m    25.2M   5.96G       -
    axial_resnet50_l    44.0M   10.2G       -
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, normalised, observe, place
from vitrail.layers.tokens import only_size
from vitrail.models.attention_resnet import AttentionResNet, Grid, shortcut


@dataclass(frozen=True)
class Config:
    """What section 4 varies: depths, and the share of the widths of size L."""

    depths: tuple[int, int, int, int]
    width_factor: float
    num_heads: int = 8
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "axial_resnet26_s": Config((1, 2, 4, 1), 0.5),
    "axial_resnet50_s": Config((3, 4, 6, 3), 0.5),
    "axial_resnet50_m": Config((3, 4, 6, 3), 0.75),
    "axial_resnet50_l": Config((3, 4, 6, 3), 1.0),
}


class AxialAttention(nn.Module):
    """Position-sensitive attention along one axis (equation 4): (B, D, H, W) -> (B, D, H/stride, W/stride).

    `other` is the axis that is folded into the batch: 3, columns, where rows differ; 2, rows, where columns do. A row
    of `relative`, (2 d, 2 L - 1), goes with each channel of queries, keys and values of a head, shared by the heads.
    """

    def __init__(self, dim: int, num_heads: int, length: int, other: int, stride: int = 1):
        super().__init__()
        if dim % (2 * num_heads):
            raise UserError(f"width {dim} is not divisible by 2 * num_heads = {2 * num_heads}; change one of them")
        self.num_heads, self.other = num_heads, other
        head = dim // num_heads
        self.sizes = head // 2, head // 2, head
        self.qkv_transform = nn.Conv1d(dim, 2 * dim, kernel_size=1, bias=False)
        self.bn_qkv = nn.BatchNorm1d(2 * dim)
        self.bn_similarity = nn.BatchNorm2d(3 * num_heads)
        self.bn_output = nn.BatchNorm1d(2 * dim)
        self.relative = nn.Parameter(torch.empty(2 * head, 2 * length - 1))
        steps = torch.arange(length)
        self.register_buffer("offsets", steps[:, None] - steps[None, :] + length - 1, persistent=False)
        self.offsets: Tensor
        self.pooling = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        nn.init.normal_(self.qkv_transform.weight, std=dim**-0.5)
        nn.init.normal_(self.relative, std=head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        place(self, lambda: self.places((x.shape[-2], x.shape[-1]), x.device))
        lines = x.movedim(self.other, 1)  # (B, G, D, L)
        y = self.attend_along(lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
        return self.pooling(y.movedim(1, self.other))

    def attend_along(self, x: Tensor) -> Tensor:
        """(B * G, D, L) -> the same, every position from all of its line."""
        qkv = self.bn_qkv(self.qkv_transform(x)).unflatten(1, (self.num_heads, -1))
        q, k, v = qkv.split(self.sizes, dim=2)  # (B * G, h, d/2 or d, L)
        r_q, r_k, r_v = self.relative[:, self.offsets].split(self.sizes)  # (d/2 or d, L, L)
        logits = [
            torch.einsum("bhci,bhcj->bhij", q, k),
            torch.einsum("bhci,cij->bhij", q, r_q),
            torch.einsum("bhcj,cji->bhij", k, r_k),
        ]
        # a batch norm on each term: what no fused kernel computes
        total = self.bn_similarity(torch.cat(logits, dim=1)).unflatten(1, (3, self.num_heads)).sum(1)
        weights = observe(self, normalised(total, -1))
        content = torch.einsum("bhij,bhcj->bhci", weights, v)
        position = torch.einsum("bhij,cij->bhci", weights, r_v)
        out = self.bn_output(torch.stack([content, position], dim=3).flatten(1, 3))
        return out.unflatten(1, (-1, 2)).sum(2)

    def places(self, grid: Grid, device: torch.device) -> Places:
        """Each line of the picture asks itself."""
        cells = torch.arange(grid[0] * grid[1], device=device).view(1, 1, *grid)
        lines = cells.movedim(self.other, 1)[0, :, 0]  # (G, L)
        return Places(lines, lines[:, None], grid, (grid,))


class AxialBlock(nn.Module):
    """1 x 1 convolution, attention along columns and along rows, 1 x 1 convolution, and a shortcut (figure 2)."""

    def __init__(self, dim: int, width: int, out: int, stride: int, num_heads: int, grid: Grid):
        super().__init__()
        self.conv_down = nn.Conv2d(dim, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.hight_block = AxialAttention(width, num_heads, grid[0], other=3)
        self.width_block = AxialAttention(width, num_heads, grid[1], other=2, stride=stride)
        self.conv_up = nn.Conv2d(width, out, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.downsample = shortcut(dim, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv_down(x)))
        y = self.relu(self.width_block(self.hight_block(y)))
        return self.relu(self.bn2(self.conv_up(y)) + self.downsample(x))


class Model(AttentionResNet):
    """Axial-ResNet: images (B, C, S, S), normalised, -> logits (B, K).

    Raises UserError for images of another size than `config.img_size`.
    """

    expansion = 2
    release_keys = ((r".*\.flatten_index", ""),)

    def __init__(self, config: Config):
        def scaled(width: int) -> int:
            return int(width * config.width_factor)

        super().__init__(config, width=scaled(128), stem_width=scaled(64))

    def make_block(self, _stage: int, _index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """A block that attends along both axes of `grid`, before it strides."""
        return AxialBlock(dim, width, width * self.expansion, stride, self.config.num_heads, grid)

    def init_weights(self) -> None:
        """He's; the last norm of each block 0."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, AxialBlock):
                nn.init.zeros_(module.bn2.weight)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, S/s, S/s) at strides s = 4, 8, 16 and 32."""
        height, width = images.shape[-2:]
        only_size(height, width, self.config.img_size, "its tables of offsets fit one size")
        return super().pyramid(images)

    def no_weight_decay(self) -> set[str]:
        """The tables of offsets."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative")}
