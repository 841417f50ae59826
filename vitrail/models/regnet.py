"""Designing Network Design Spaces. Radosavovic, Kosaraju, Girshick, He and Dollar, CVPR 2020, arXiv 2003.13678.

Idea      search for a good space of networks instead of one network: in it, widths grow linearly with depth.
Differs   from ResNeXt: no bottleneck narrowing, widths from a quantised line instead of by doubling; Y adds
          squeeze-and-excitation.
Shapes    (B,3,224,224) -stem-> (B,32,112,112) -> (B,w1,56,56) -> (B,w2,28,28) -> (B,w3,14,14) -> (B,w4,7,7) -> (B,K)
Lecture   convolutional networks, the baseline

Block j of `depth` has width w_0 + w_a * j, rounded to w_0 times a power of w_m and to whole groups (section 3.3).

    variant           params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (multiply-adds)
    regnet_x_400mf      5.5M   0.41G    74.9
    regnet_x_800mf      7.3M   0.80G    77.5
    regnet_x_1_6gf      9.2M   1.60G    79.7
    regnet_x_3_2gf     15.3M   3.18G    81.2
    regnet_x_8gf       39.6M   8.00G    81.7
    regnet_x_16gf      54.3M   15.9G    82.7
    regnet_x_32gf     107.8M   31.7G    83.0
    regnet_y_400mf      4.3M   0.40G    75.8
    regnet_y_800mf      6.4M   0.83G    78.8
    regnet_y_1_6gf     11.2M   1.61G    80.9
    regnet_y_3_2gf     19.4M   3.18G    82.0
    regnet_y_8gf       39.4M   8.47G    82.8
    regnet_y_16gf      83.6M   15.9G    82.9
    regnet_y_32gf     145.0M   32.3G    83.4
    regnet_y_128gf    644.8M  374.6G    88.2     SWAG weights, 384 x 384
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import RegNet
from torchvision.models.regnet import BlockParams

from vitrail.models.torchvision_cnn import CNN


@dataclass(frozen=True)
class Config:
    """The paper's parameters of a network: depth, the line of widths, and channels a group."""

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int
    se_ratio: float | None = None
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "regnet_x_400mf": Config(22, 24, 24.48, 2.54, 16),
    "regnet_x_800mf": Config(16, 56, 35.73, 2.28, 16),
    "regnet_x_1_6gf": Config(18, 80, 34.01, 2.25, 24),
    "regnet_x_3_2gf": Config(25, 88, 26.31, 2.25, 48),
    "regnet_x_8gf": Config(23, 80, 49.56, 2.88, 120),
    "regnet_x_16gf": Config(22, 216, 55.59, 2.1, 128),
    "regnet_x_32gf": Config(23, 320, 69.86, 2.0, 168),
    "regnet_y_400mf": Config(16, 48, 27.89, 2.09, 8, se_ratio=0.25),
    "regnet_y_800mf": Config(14, 56, 38.84, 2.4, 16, se_ratio=0.25),
    "regnet_y_1_6gf": Config(27, 48, 20.71, 2.65, 24, se_ratio=0.25),
    "regnet_y_3_2gf": Config(21, 80, 42.63, 2.66, 24, se_ratio=0.25),
    "regnet_y_8gf": Config(17, 192, 76.82, 2.19, 56, se_ratio=0.25),
    "regnet_y_16gf": Config(18, 200, 106.23, 2.48, 112, se_ratio=0.25),
    "regnet_y_32gf": Config(20, 232, 115.89, 2.53, 232, se_ratio=0.25),
    "regnet_y_128gf": Config(27, 456, 160.83, 2.52, 264, se_ratio=0.25, img_size=384),
}


class Model(CNN, RegNet):
    """RegNet: images (B, C, H, W), normalised, -> logits (B, K)."""

    blocks_are = r"trunk_output\.block\d\.block\d-\d+"
    head_name = "fc"
    classifier = "fc"
    stem: nn.Module
    trunk_output: nn.Sequential

    def __init__(self, config: Config):
        with torch.device("cpu"):  # torchvision computes the widths with tensors, which must have values
            line = BlockParams.from_init_params(
                config.depth, config.w_0, config.w_a, config.w_m, config.group_width, se_ratio=config.se_ratio
            )
        super().__init__(line, num_classes=max(config.num_classes, 1))
        self.adapt(config)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.trunk_output:
            maps.append(stage(maps[-1]))
        return maps[1:]
