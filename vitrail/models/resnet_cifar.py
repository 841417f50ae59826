"""Deep Residual Learning for Image Recognition. He, Zhang, Ren and Sun, CVPR 2016, arXiv 1512.03385: the networks of
section 4.2, for CIFAR-10.

Idea      a residual network as narrow and deep as 32 x 32 images need: n blocks in each of three stages, 6n + 2 layers.
Differs   from `resnet.py`: three stages of 16, 32 and 64 channels, no pooling before them, and shortcuts without
          parameters (option A): where a stage begins, every second position, and zeros for the new channels.
Shapes    (B,3,32,32) -> (B,16,32,32) -> (B,32,16,16) -> (B,64,8,8) -mean-> (B,K)
Lecture   convolutional networks, the baseline

Parameters and FLOPs are counted with 1000 classes, as everywhere here; with CIFAR's ten they are the paper's Table 6.

    variant      params   FLOPs   top-1     Table 6: CIFAR-10, 32 x 32 (110: the best of five runs)
    resnet20      334K   40.6M   91.25
    resnet32      529K   68.9M   92.49
    resnet44      723K   97.2M   92.83
    resnet56      917K  125.5M   93.03
    resnet110    1.79M  253.0M   93.57
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from vitrail.models.protocol import Classifier

WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Config:
    """Blocks in each of the three stages."""

    depth: int
    img_size: int = 32
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "resnet20": Config(3),
    "resnet32": Config(5),
    "resnet44": Config(7),
    "resnet56": Config(9),
    "resnet110": Config(18),
}


class PaddedShortcut(nn.Module):
    """Every second position, zeros for the new channels: (B, C, H, W) -> (B, 2 C, H/2, W/2), odd sides rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class Model(Classifier):
    """ResNet for small images: images (B, C, H, W) of any size, normalised, -> logits (B, K)."""

    blocks_are = r"layer\d\.\d+"
    head_name = "fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.num_features = WIDTHS[-1]
        self.conv1 = nn.Conv2d(config.in_chans, WIDTHS[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (self.make_stage(stage) for stage in range(3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(config.num_classes)

    def make_stage(self, stage: int) -> nn.Sequential:
        """Blocks of one width; the first of the second and third stage halves the side."""
        width = WIDTHS[stage]
        first = BasicBlock(WIDTHS[stage - 1], width, 2, PaddedShortcut()) if stage else BasicBlock(width, width)
        return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(self.config.depth - 1)))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64, H/4, W/4)."""
        return self.pyramid(images)[-1]

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions: (B, 64)."""
        return features.mean((2, 3))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Three maps (B, D, H/s, W/s) at strides s = 1, 2, 4, for dense tasks."""
        x = F.relu(self.bn1(self.conv1(images)))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return maps
