"""The ResNet into which papers put attention: He et al., CVPR 2016, arXiv 1512.03385, its spatial operator passed in.

A paper hands over the module that stands where the 3 x 3 convolution of a bottleneck stood, or replaces the whole
block (`make_block`) or the stem (`make_stem`). Modules are called as in torchvision's ResNet, strides are in the
spatial operator, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vitrail.models.protocol import Classifier

Grid = tuple[int, int]
Spatial = Callable[[int, int, int, Grid], nn.Module]
"""(stage 0 to 3, width, stride, grid of its input) -> a module (B, width, H, W) -> (B, width, H/stride, W/stride)."""


def conv3x3(_stage: int, width: int, stride: int, _grid: Grid) -> nn.Module:
    """ResNet's own spatial operator."""
    return nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)


class Bottleneck(nn.Module):
    """1 x 1 convolution, spatial operator, 1 x 1 convolution, and a shortcut: (B, dim, H, W) -> (B, out, H/s, W/s).

    `attn`, the identity unless a paper puts attention between two blocks, acts on what leaves the block.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        out: int,
        stride: int,
        spatial: nn.Module,
        act: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = spatial
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = act()
        self.downsample = shortcut(dim, out, stride)
        self.attn: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.attn(self.relu(self.bn3(self.conv3(y)) + self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, for the shallow networks: (B, dim, H, W) -> (B, width, H/s, W/s).

    The first, which strides, is passed in.
    """

    def __init__(self, dim: int, width: int, stride: int, spatial: nn.Module):
        super().__init__()
        self.conv1 = spatial
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(dim, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def shortcut(dim: int, out: int, stride: int) -> nn.Module:
    """The identity, or a strided 1 x 1 convolution where the shape changes."""
    if stride == 1 and dim == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(dim, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out))


class AttentionResNet(Classifier):
    """Stem, four stages, mean, linear layer: images (B, C, H, W), normalised, -> logits (B, K).

    `config` has `depths` (blocks a stage), `img_size`, `in_chans` and `num_classes`. Spatial operators are `width` wide
    in the first stage and twice as wide in each next; `expansion` times as many channels leave a block. `strides` are
    those of each stage's first block.
    """

    blocks_are = r"layer\d\.\d+"
    head_name = "fc"
    expansion = 4

    def __init__(
        self,
        config: Any,
        spatial: Spatial = conv3x3,
        *,
        width: int = 64,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        stem_width: int = 64,
    ):
        super().__init__()
        self.config = config
        self.spatial = spatial
        self.stem_width = stem_width
        self.make_stem()
        side = -(-config.img_size // 4)
        dim = stem_width
        for stage, depth in enumerate(config.depths):
            blocks = []
            for index in range(depth):
                stride = strides[stage] if index == 0 else 1
                blocks.append(self.make_block(stage, index, dim, width, stride, (side, side)))
                side, dim = -(-side // stride), self.out_channels(width)
            width *= 2
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = dim
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def out_channels(self, width: int) -> int:
        """Channels that leave the blocks whose spatial operator is `width` wide."""
        return width * self.expansion

    def make_stem(self) -> None:
        """A 7 x 7 convolution and a pooling, stride 2 each: `conv1`, `bn1`, `relu`, `maxpool`."""
        width = self.stem_width
        self.conv1: nn.Module = nn.Conv2d(self.config.in_chans, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.relu: nn.Module = nn.ReLU()
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def make_block(self, stage: int, _index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """Block `index` of a stage: (B, dim, H, W) -> (B, out_channels, H/stride, W/stride), H x W = `grid`."""
        return Bottleneck(dim, width, self.out_channels(width), stride, self.spatial(stage, width, stride, grid))

    def init_weights(self) -> None:
        """He's: convolutions by their fan-out, the last norm of each block 0, so that blocks start as shortcuts."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, H/s, W/s) at strides s = 4, 8, 16 and 32 (16 where the last stage does not stride)."""
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for stage in range(4):
            maps.append(self.get_submodule(f"layer{stage + 1}")(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map (B, D, H', W')."""
        return self.pyramid(images)[-1]

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean((-2, -1))
