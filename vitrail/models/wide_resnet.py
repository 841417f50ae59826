"""Wide Residual Networks. Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146.

Idea      wide residual blocks learn as well as many more thin ones, and run faster.
Differs   from ResNet: the bottleneck's 3 x 3 convolution has twice the channels.
Shapes    (B,3,224,224) -> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7) -> (B,K)
Lecture   convolutional networks, the baseline

    variant            params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (multiply-adds)
    wide_resnet50_2     68.9M   11.4G    81.6
    wide_resnet101_2   126.9M   22.8G    82.5
"""

from __future__ import annotations

from vitrail.models.resnet import Config, Model

__all__ = ["VARIANTS", "Config", "Model"]

VARIANTS = {
    "wide_resnet50_2": Config("bottleneck", (3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": Config("bottleneck", (3, 4, 23, 3), base_width=128),
}
