"""Aggregated Residual Transformations for Deep Neural Networks. Xie, Girshick, Dollar, Tu and He, CVPR 2017,
arXiv 1611.05431.

Idea      more parallel paths in a block ("cardinality") help more than more depth or width at the same cost.
Differs   from ResNet: the bottleneck's 3 x 3 convolution is split into 32 or 64 groups, and is wider.
Shapes    (B,3,224,224) -> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7) -> (B,K)
Lecture   convolutional networks, the baseline

    variant            params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (multiply-adds)
    resnext50_32x4d     25.0M   4.23G    81.2
    resnext101_32x8d    88.8M   16.4G    82.8
    resnext101_64x4d    83.5M   15.5G    83.2
"""

from __future__ import annotations

from vitrail.models.resnet import Config, Model

__all__ = ["VARIANTS", "Config", "Model"]

VARIANTS = {
    "resnext50_32x4d": Config("bottleneck", (3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x8d": Config("bottleneck", (3, 4, 23, 3), groups=32, base_width=8),
    "resnext101_64x4d": Config("bottleneck", (3, 4, 23, 3), groups=64, base_width=4),
}
