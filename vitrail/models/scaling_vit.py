"""Scaling Vision Transformers. Zhai, Kolesnikov, Houlsby and Beyer, CVPR 2022, arXiv 2106.04560.

Idea      error falls with compute, data and size together along one curve; shapes for a sweep from 5 million
          parameters to 1.8 billion.
Differs   from ViT: no class token (on accelerators 256 + 1 tokens are padded to 384); one learned query reads all
          patches (the MAP head), which does as well; no hidden layer before the head.
Shapes    (B,3,224,224) -patch 14-> (B,256,1664) -48 blocks-> (B,256,1664) -MAP-> (B,1664) -> (B,K)
Lecture   scaling transformers

The paper's table of shapes counts neither the head nor the MAP head, and a multiply and an add apart: 1843M and 965G
for the largest. Its weights, trained on JFT-3B, are not released; 90.45 % is that model's after fine-tuning.

    variant                             params   FLOPs   top-1     params with MAP head and 1000 classes
    scaling_vit_xsmall_patch28_224       6.4M   0.36G       -
    scaling_vit_xsmall_patch16_224       6.0M   1.11G       -
    scaling_vit_tiny_patch16_224         6.2M   1.26G       -
    scaling_vit_small_patch32_224       24.7M   1.14G       -
    scaling_vit_small_patch16_224       23.8M   4.63G       -
    scaling_vit_base_patch32_224        95.3M   4.39G       -
    scaling_vit_base_patch28_224        94.8M   5.71G       -
    scaling_vit_base_patch16_224        93.7M   17.7G       -
    scaling_vit_large_patch16_224      316.9M   61.7G       -
    scaling_vit_giant_patch14_224      1037.9M  267.0G       -
    scaling_vit_gigantic_patch14_224   1882.8M  483.3G   90.45
"""

from __future__ import annotations

from vitrail.models import vit
from vitrail.models.vit import Config, Model

VARIANTS = {
    "scaling_vit_xsmall_patch28_224": Config(28, 224, 256, 6, 8, global_pool="map"),
    "scaling_vit_xsmall_patch16_224": Config(16, 224, 256, 6, 8, global_pool="map"),
    "scaling_vit_tiny_patch16_224": Config(16, 224, *vit.TINY, global_pool="map"),
    "scaling_vit_small_patch32_224": Config(32, 224, *vit.SMALL, global_pool="map"),
    "scaling_vit_small_patch16_224": Config(16, 224, *vit.SMALL, global_pool="map"),
    "scaling_vit_base_patch32_224": Config(32, 224, *vit.BASE, global_pool="map"),
    "scaling_vit_base_patch28_224": Config(28, 224, *vit.BASE, global_pool="map"),
    "scaling_vit_base_patch16_224": Config(16, 224, *vit.BASE, global_pool="map"),
    "scaling_vit_large_patch16_224": Config(16, 224, *vit.LARGE, global_pool="map"),
    "scaling_vit_giant_patch14_224": Config(14, 224, 1408, 40, 16, mlp_ratio=48 / 11, global_pool="map"),
    "scaling_vit_gigantic_patch14_224": Config(14, 224, 1664, 48, 16, mlp_ratio=64 / 13, global_pool="map"),
}

__all__ = ["VARIANTS", "Config", "Model"]
