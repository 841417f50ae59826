"""CoAtNet: Marrying Convolution and Attention for All Data Sizes, as printed. Dai, Liu, Le and Tan, NeurIPS 2021,
arXiv 2106.04803.

Idea      that of `coatnet.py`, which computes what timm does; here is what the paper's text says.
Differs   from `coatnet.py`: maps are halved by maxima; MBConv strides in its first 1 x 1 convolution, which reads every
          fourth pixel but makes the block cheaper; nothing but a norm between the mean and the last layer.
Shapes    (B,3,224,224) -stem-> (B,64,112,112) -MBConv-> (B,96,56,56) -> (B,192,28,28) -attention-> (B,384,14,14)
          -> (B,768,7,7) -mean-> (B,768) -> (B,K)
Lecture   hybrids of convolution and attention

What the text leaves open is as in `coatnet.py`: norm and GELU inside the stem, a fourfold expansion of the width that a
block leaves, SiLU inside squeeze-and-excite, queries, keys and values as wide as the stage. The printed FLOPs are those
of this form to 2 %; those of `coatnet.py` are a tenth above for the smallest. The printed sizes speak for the hidden
layer that the text does not have: four of five are those of `coatnet.py`.

    variant              params   FLOPs   top-1     ImageNet-1k, 224 x 224; params and FLOPs are counted (the paper:
    coatnet_0_paper_224   24.4M   4.14G    81.6     25M, 4.2G; 42M, 8.4G; 75M, 15.7G; 168M, 34.7G; 275M)
    coatnet_1_paper_224   41.6M   8.24G    83.3
    coatnet_2_paper_224   73.6M   15.5G    84.1
    coatnet_3_paper_224  164.6M   34.4G    84.5
    coatnet_4_paper_224  273.1M   60.2G       -
"""

from __future__ import annotations

from torch import nn

from vitrail.models import coatnet
from vitrail.models.coatnet import Config, MBConv, PoolingTransformerBlock

VARIANTS = {
    "coatnet_0_paper_224": Config((96, 192, 384, 768), (2, 3, 5, 2), 64),
    "coatnet_1_paper_224": Config((96, 192, 384, 768), (2, 6, 14, 2), 64),
    "coatnet_2_paper_224": Config((128, 256, 512, 1024), (2, 6, 14, 2), 128),
    "coatnet_3_paper_224": Config((192, 384, 768, 1536), (2, 6, 14, 2), 192),
    "coatnet_4_paper_224": Config((192, 384, 768, 1536), (2, 12, 28, 2), 192),
}


class Model(coatnet.Model):
    """CoAtNet: images (B, C, img_size, img_size), normalised, -> logits (B, K)."""

    def make_conv_block(self, _stage: int, dim: int, out: int, first: bool, drop_path: float) -> nn.Module:
        """x + MBConv(norm(x)); the `first` of a stage: Proj(Pool(x)) + Conv(DepthConv(Conv(norm(x), stride 2)))."""
        return MBConv(dim, out, drop_path, nn.MaxPool2d(2), (2, 1)) if first else MBConv(dim, out, drop_path)

    def pooling(self, dim: int, out: int, attn: nn.Module, drop_path: float) -> nn.Module:
        """Proj(Pool(x)) + Attention(Pool(norm(x)))."""
        return PoolingTransformerBlock(dim, out, attn, drop_path, nn.MaxPool2d(2))

    def make_head(self) -> None:
        """No hidden layer."""
        super().make_head()
        self.head.pre_logits = nn.Identity()
