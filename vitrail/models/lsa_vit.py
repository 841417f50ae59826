"""Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: of its two ideas locality
self-attention alone.

Idea      attention that small data leaves too even is sharpened: a learned temperature, and no token attends to itself.
Differs   from `vit_pico.py`, the paper's baseline: the temperature of each head, and the masked diagonal.
Shapes    (B,3,32,32) -patch 4-> (B,64,192) -class token-> (B,65,192) -9 blocks-> (B,K)
Lecture   training transformers on less data

    variant              params   FLOPs   top-1     counts are ours, 1000 classes
    lsa_vit_patch4_32      2.9M  187.9M       -
    lsa_vit_patch8_64      2.9M  189.7M       -
"""

from __future__ import annotations

from vitrail.models.sl_vit import Config, Model

__all__ = ["VARIANTS", "Config", "Model"]

VARIANTS = {
    "lsa_vit_patch4_32": Config(4, 32, spt=False),
    "lsa_vit_patch8_64": Config(8, 64, spt=False),
}
