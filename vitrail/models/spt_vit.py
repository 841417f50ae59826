"""Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: of its two ideas shifted patch
tokenization alone.

Idea      a patch sees half a patch beyond its border: it is cut from the image and four diagonally shifted copies.
Differs   from `vit_pico.py`, the paper's baseline: five times the channels and a norm before the projection.
Shapes    (B,3,32,32) -shift-> (B,15,32,32) -patch 4-> (B,64,240) -project-> (B,64,192) -class token-> (B,65,192)
          -9 blocks-> (B,K)
Lecture   training transformers on less data

    variant              params   FLOPs   top-1     counts are ours, 1000 classes
    spt_vit_patch4_32      2.9M  190.3M       -
    spt_vit_patch8_64      3.1M  199.2M       -
"""

from __future__ import annotations

from vitrail.models.sl_vit import Config, Model

__all__ = ["VARIANTS", "Config", "Model"]

VARIANTS = {
    "spt_vit_patch4_32": Config(4, 32, lsa=False),
    "spt_vit_patch8_64": Config(8, 64, lsa=False),
}
