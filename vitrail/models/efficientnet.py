"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. Tan and Le, ICML 2019, arXiv 1905.11946.
V2: EfficientNetV2: Smaller Models and Faster Training. Tan and Le, ICML 2021, arXiv 2104.00298.

Idea      find a small network by search, then scale depth, width and image size together. V2 searches for training
          speed and puts plain convolutions into the early stages.
Differs   from ResNet: inverted bottlenecks (narrow, wide depthwise, narrow) with squeeze-and-excitation, SiLU.
Shapes    V2-S: (B,3,384,384) -stem-> (B,24,192,192) -> (B,48,96,96) -> (B,64,48,48) -> (B,160,24,24) -> (B,256,12,12)
          -1x1-> (B,1280,12,12) -> (B,K)
Lecture   convolutional networks, the baseline

`img_size` is the side torchvision evaluates at. The papers train with stochastic depth: `drop_path_rate=0.2`.

    variant             params   FLOPs   top-1     torchvision's weights, ImageNet-1k (FLOPs are multiply-adds)
    efficientnet_b0       5.3M   0.39G    77.7     224
    efficientnet_b1       7.8M   0.69G    79.8     240
    efficientnet_b2       9.1M   1.09G    80.6     288
    efficientnet_b3      12.2M   1.83G    82.0     300
    efficientnet_b4      19.3M   4.39G    83.4     380
    efficientnet_b5      30.4M   10.3G    83.4     456
    efficientnet_b6      43.0M   19.1G    84.0     528
    efficientnet_b7      66.3M   37.7G    84.1     600
    efficientnet_v2_s    21.5M   8.37G    84.2     384
    efficientnet_v2_m    54.1M   24.6G    85.1     480
    efficientnet_v2_l   118.5M   56.1G    85.8     480
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import FusedMBConv, FusedMBConvConfig, MBConv, MBConvConfig

from vitrail.models.torchvision_cnn import FeaturesCNN


class Stage(NamedTuple):
    """A row of the papers' tables: `layers` blocks, the first of which strides and changes the width."""

    fused: bool
    expand: int
    kernel: int
    stride: int
    width_in: int
    width_out: int
    layers: int


@dataclass(frozen=True)
class Config:
    """Stages and their scaling. `drop_rate` is the dropout before the head."""

    stages: tuple[Stage, ...]
    img_size: int
    drop_rate: float
    width_mult: float = 1.0
    depth_mult: float = 1.0
    head_width: int | None = None
    """Channels of the last map. None: four times the last stage's."""
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


B0 = (
    Stage(False, 1, 3, 1, 32, 16, 1),
    Stage(False, 6, 3, 2, 16, 24, 2),
    Stage(False, 6, 5, 2, 24, 40, 2),
    Stage(False, 6, 3, 2, 40, 80, 3),
    Stage(False, 6, 5, 1, 80, 112, 3),
    Stage(False, 6, 5, 2, 112, 192, 4),
    Stage(False, 6, 3, 1, 192, 320, 1),
)
V2_S = (
    Stage(True, 1, 3, 1, 24, 24, 2),
    Stage(True, 4, 3, 2, 24, 48, 4),
    Stage(True, 4, 3, 2, 48, 64, 4),
    Stage(False, 4, 3, 2, 64, 128, 6),
    Stage(False, 6, 3, 1, 128, 160, 9),
    Stage(False, 6, 3, 2, 160, 256, 15),
)
V2_M = (
    Stage(True, 1, 3, 1, 24, 24, 3),
    Stage(True, 4, 3, 2, 24, 48, 5),
    Stage(True, 4, 3, 2, 48, 80, 5),
    Stage(False, 4, 3, 2, 80, 160, 7),
    Stage(False, 6, 3, 1, 160, 176, 14),
    Stage(False, 6, 3, 2, 176, 304, 18),
    Stage(False, 6, 3, 1, 304, 512, 5),
)
V2_L = (
    Stage(True, 1, 3, 1, 32, 32, 4),
    Stage(True, 4, 3, 2, 32, 64, 7),
    Stage(True, 4, 3, 2, 64, 96, 7),
    Stage(False, 4, 3, 2, 96, 192, 10),
    Stage(False, 6, 3, 1, 192, 224, 19),
    Stage(False, 6, 3, 2, 224, 384, 25),
    Stage(False, 6, 3, 1, 384, 640, 7),
)

VARIANTS = {
    "efficientnet_b0": Config(B0, 224, 0.2),
    "efficientnet_b1": Config(B0, 240, 0.2, 1.0, 1.1),
    "efficientnet_b2": Config(B0, 288, 0.3, 1.1, 1.2),
    "efficientnet_b3": Config(B0, 300, 0.3, 1.2, 1.4),
    "efficientnet_b4": Config(B0, 380, 0.4, 1.4, 1.8),
    "efficientnet_b5": Config(B0, 456, 0.4, 1.6, 2.2, norm_eps=1e-3, norm_momentum=0.01),
    "efficientnet_b6": Config(B0, 528, 0.5, 1.8, 2.6, norm_eps=1e-3, norm_momentum=0.01),
    "efficientnet_b7": Config(B0, 600, 0.5, 2.0, 3.1, norm_eps=1e-3, norm_momentum=0.01),
    "efficientnet_v2_s": Config(V2_S, 384, 0.2, head_width=1280, norm_eps=1e-3),
    "efficientnet_v2_m": Config(V2_M, 480, 0.3, head_width=1280, norm_eps=1e-3),
    "efficientnet_v2_l": Config(V2_L, 480, 0.4, head_width=1280, norm_eps=1e-3),
}


class Model(FeaturesCNN, EfficientNet):
    """EfficientNet: images (B, C, H, W), normalised, -> logits (B, K)."""

    head_name = "classifier.1"

    def trunk(self) -> list[str]:
        return [name for name, module in self.named_modules() if isinstance(module, MBConv | FusedMBConv)]

    def __init__(self, config: Config):
        super().__init__(
            [scaled(stage, config.width_mult, config.depth_mult) for stage in config.stages],
            config.drop_rate,
            config.drop_path_rate,
            max(config.num_classes, 1),
            partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum),
            config.head_width,
        )
        # `features` is stem, stages, 1 x 1: a map is taken before each stride but the first (which ends stride 2)
        strided = [index for index, stage in enumerate(config.stages) if stage.stride == 2]
        self.taps = [*strided[1:], len(config.stages)]
        self.adapt(config)


def scaled(stage: Stage, width_mult: float, depth_mult: float) -> MBConvConfig | FusedMBConvConfig:
    """The stage for torchvision, its widths and depth multiplied (widths to multiples of 8, depth rounded up)."""
    if stage.fused:
        return FusedMBConvConfig(*stage[1:])
    return MBConvConfig(*stage[1:], width_mult=width_mult, depth_mult=depth_mult)
