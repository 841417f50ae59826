"""A ResNet written out in float64, from which the references of attention in convolutional networks are put together.

Parameters are read by torchvision's names; a paper's reference passes in what it puts in place of a convolution,
between blocks or before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[str, Tensor], Tensor]
"""(name of the module, what it reads) -> what it gives."""


class Plain:
    """`parameters` by name, in float64; batch statistics are those of the batch in training."""

    def __init__(self, parameters: dict[str, Tensor], training: bool):
        self.parameters = {
            name: value.double() for name, value in parameters.items() if not name.endswith("num_batches_tracked")
        }
        self.training = training

    def __getitem__(self, name: str) -> Tensor:
        return self.parameters[name]

    def __contains__(self, name: str) -> bool:
        return name in self.parameters

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """A convolution that keeps the side, but for its stride."""
        weight, bias = self[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm, channel by channel."""
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scale = self[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return x * scale[:, None, None] + (self[f"{name}.bias"] - mean * scale)[:, None, None]

    def stem(self, images: Tensor) -> Tensor:
        """7 x 7 and a pooling."""
        return F.max_pool2d(self.norm("bn1", self.conv("conv1", images, 2)).relu(), 3, 2, 1)

    def shortcut(self, name: str, x: Tensor, stride: int) -> Tensor:
        """What is added to the branch."""
        if f"{name}.downsample.0.weight" not in self:
            return x
        return self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))

    def bottleneck(self, name: str, x: Tensor, stride: int, spatial: Layer | None = None) -> Tensor:
        """1 x 1, spatial operator (a strided 3 x 3 unless given), 1 x 1."""
        y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu()
        y = self.conv(f"{name}.conv2", y, stride) if spatial is None else spatial(f"{name}.conv2", y)
        y = self.conv(f"{name}.conv3", self.norm(f"{name}.bn2", y).relu())
        return (self.norm(f"{name}.bn3", y) + self.shortcut(name, x, stride)).relu()

    def basic(self, name: str, x: Tensor, stride: int, spatial: Layer | None = None) -> Tensor:
        """Two 3 x 3, of which the first strides unless it is given."""
        y = self.conv(f"{name}.conv1", x, stride) if spatial is None else spatial(f"{name}.conv1", x)
        y = self.conv(f"{name}.conv2", self.norm(f"{name}.bn1", y).relu())
        return (self.norm(f"{name}.bn2", y) + self.shortcut(name, x, stride)).relu()

    def logits(
        self,
        images: Tensor,
        depths: Sequence[int],
        block: Callable[[str, Tensor, int, int, int], Tensor],
        stem: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Stem, stages, mean, linear; `block` is called with (name, map, stride, stage, index)."""
        x = (stem or self.stem)(images.double())
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                x = block(f"layer{stage + 1}.{index}", x, stride, stage, index)
        return x.mean((2, 3)) @ self["fc.weight"].T + self["fc.bias"]


def inside(y: int, x: int, grid: tuple[int, int]) -> bool:
    """Whether a position lies on the map."""
    return 0 <= y < grid[0] and 0 <= x < grid[1]


def positions(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """All positions of a map in reading order."""
    return [(y, x) for y in range(grid[0]) for x in range(grid[1])]


def picture(columns: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B, C) for each position in reading order -> (B, C, H, W)."""
    return torch.stack(columns, dim=-1).unflatten(-1, grid)
