"""Deep Residual Learning for Image Recognition. He, Zhang, Ren and Sun, CVPR 2016, arXiv 1512.03385.

Idea      let each block learn what to add to its input: networks of a hundred layers then train.
Differs   from VGG: shortcuts around every two or three convolutions, batch normalisation, one linear layer as head.
Shapes    (B,3,224,224) -> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7) -> (B,K)
Lecture   convolutional networks, the baseline

Bottlenecks have their stride in the 3 x 3 convolution, as in torchvision ("v1.5"; the paper: in the first 1 x 1).
Small images keep their pixels: up to `img_size` 64 the stem is one 3 x 3 convolution of stride 1 without pooling, the
paper's CIFAR stem (section 4.2). `small_stem` decides otherwise; official weights need `small_stem=False`.

    variant      params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (FLOPs are multiply-adds)
    resnet18      11.7M   1.81G    69.8
    resnet34      21.8M   3.66G    73.3
    resnet50      25.6M   4.09G    80.9
    resnet101     44.5M   7.80G    81.9
    resnet152     60.2M   11.5G    82.3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from vitrail.models.torchvision_cnn import CNN


@dataclass(frozen=True)
class Config:
    """Blocks in each of the four stages. `groups` and `base_width` shape the 3 x 3 convolutions of bottlenecks."""

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64
    small_stem: bool | None = None
    """Whether the stem keeps the resolution. None: for images up to 64 pixels a side."""
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "resnet18": Config("basic", (2, 2, 2, 2)),
    "resnet34": Config("basic", (3, 4, 6, 3)),
    "resnet50": Config("bottleneck", (3, 4, 6, 3)),
    "resnet101": Config("bottleneck", (3, 4, 23, 3)),
    "resnet152": Config("bottleneck", (3, 8, 36, 3)),
}


class Model(CNN, ResNet):
    """ResNet: images (B, C, H, W), normalised, -> logits (B, K)."""

    blocks_are = r"layer\d\.\d+"
    head_name = "fc"
    classifier = "fc"
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, config: Config):
        block = BasicBlock if config.block == "basic" else Bottleneck
        super().__init__(
            block,
            list(config.depths),
            num_classes=max(config.num_classes, 1),
            groups=config.groups,
            width_per_group=config.base_width,
        )
        if config.img_size <= 64 if config.small_stem is None else config.small_stem:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            self.init_first_conv(self.conv1)
            self.maxpool = nn.Identity()
        self.adapt(config)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, H/s, W/s) at strides s = 4, 8, 16, 32 (with the small stem 1, 2, 4, 8), for dense tasks."""
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(stage(maps[-1]))
        return maps[1:]
