"""The plain ViT for small images, as in Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021,
arXiv 2112.13492: the baseline of that paper, without its shifted patches and local attention.

Idea      a few thousand small images teach a transformer if it is narrow and its positions are loud from the start.
Differs   from ViT: narrow, MLP ratio 2, and the initialisation: Xavier-normal weights, positions and class token from
          N(0, 1), as large as the patches beside them.
Shapes    (B,3,32,32) -patch 4-> (B,64,192) -class token-> (B,65,192) -9 blocks-> (B,K)
Lecture   training transformers on less data

Vitrail's own sizes: `vit_pico_patch2_8`, for the 8 x 8 digits of the quick start, and nano, of which a CPU trains
dozens in an hour, for the studies.

    variant                          params   FLOPs   top-1     as the authors print it: CIFAR-10 for patch 4,
    vit_pico_patch2_8                  201K    2.5M       -     Tiny-ImageNet for patch 8; counts are ours, 1000 classes
    vit_pico_patch4_32                 2.9M  187.9M   93.58
    vit_pico_patch8_64                 2.9M  189.7M   57.07
    vit_nano_patch8_32                 417K    5.6M       -
    vit_nano_patch8_gap_32             416K    5.3M       -
    vit_nano_patch8_map_32             491K    5.7M       -
    vit_nano_patch4_32                 557K   34.0M       -
"""

from __future__ import annotations

from torch import nn

from vitrail.models import vit
from vitrail.models.vit import Config

VARIANTS = {
    "vit_pico_patch2_8": Config(2, 8, 64, 4, 4, mlp_ratio=2.0),
    "vit_pico_patch4_32": Config(4, 32, 192, 9, 12, mlp_ratio=2.0),
    "vit_pico_patch8_64": Config(8, 64, 192, 9, 12, mlp_ratio=2.0),
    "vit_nano_patch8_32": Config(8, 32, 96, 4, 3, mlp_ratio=2.0),
    "vit_nano_patch8_gap_32": Config(8, 32, 96, 4, 3, mlp_ratio=2.0, global_pool="avg"),
    "vit_nano_patch8_map_32": Config(8, 32, 96, 4, 3, mlp_ratio=2.0, global_pool="map"),
    "vit_nano_patch4_32": Config(4, 32, 96, 6, 3, mlp_ratio=2.0),
}


class Model(vit.Model):
    """The vision transformer with the small-data initialisation: images (B, C, H, W) -> logits (B, K)."""

    def init_weights(self) -> None:
        """Xavier-normal weights, biases 0, positions and class token from N(0, 1)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for token in [self.pos_embed, *self.prefix_tokens()]:
            nn.init.normal_(token)
