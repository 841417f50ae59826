"""A ConvNet for the 2020s. Liu, Mao, Wu, Feichtenhofer, Darrell and Xie, CVPR 2022, arXiv 2201.03545.

Idea      give a ResNet, step by step, what Swin has (patches, stages, large kernels, few norms): it keeps up.
Differs   from ResNet: a 4 x 4 patch stem, 7 x 7 depthwise convolutions, inverted bottlenecks, LayerNorm, GELU.
Shapes    (B,3,224,224) -patch 4-> (B,96,56,56) -> (B,192,28,28) -> (B,384,14,14) -> (B,768,7,7) -> (B,K)
Lecture   convolutional networks after transformers

The paper trains with stochastic depth (`drop_path_rate`): 0.1 tiny, 0.4 small, 0.5 base and large.

    variant           params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (multiply-adds)
    convnext_tiny      28.6M   4.46G    82.5
    convnext_small     50.2M   8.68G    83.6
    convnext_base      88.6M   15.4G    84.1
    convnext_large    197.8M   34.4G    84.4
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig

from vitrail.models.torchvision_cnn import FeaturesCNN


@dataclass(frozen=True)
class Config:
    """Blocks and width of the four stages."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "convnext_tiny": Config((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Config((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Config((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": Config((3, 3, 27, 3), (192, 384, 768, 1536)),
}


class Model(FeaturesCNN, ConvNeXt):
    """ConvNeXt: images (B, C, H, W), normalised, -> logits (B, K). Images of 32 pixels a side or more."""

    blocks_are = r"features\.[1357]\.\d+"
    head_name = "classifier.2"
    smallest = 32
    taps = [1, 3, 5, 7]  # `features` alternates stem or downsampling with a stage

    def __init__(self, config: Config):
        ends = zip(config.dims, (*config.dims[1:], None), config.depths, strict=True)
        super().__init__(
            [CNBlockConfig(width, following, depth) for width, following, depth in ends],
            stochastic_depth_prob=config.drop_path_rate,
            num_classes=max(config.num_classes, 1),
        )
        self.adapt(config)

    def init_first_conv(self, conv: nn.Module) -> None:
        """Draw the weights as torchvision draws those for three channels."""
        nn.init.trunc_normal_(conv.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def pool(self, features: Tensor) -> Tensor:
        """The last map (B, C, H, W) -> its normalised mean, (B, num_features)."""
        norm, flatten, _ = self.classifier
        return flatten(norm(self.avgpool(features)))
