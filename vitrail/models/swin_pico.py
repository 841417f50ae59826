"""The small Swin of Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: the baseline
that the paper puts its two ideas on (`sl_swin.py`).

Idea      Swin for images of 32 and 64 pixels: small patches, small windows, three stages.
Differs   from Swin: three stages, windows of 4, MLP ratio 2, and a learned position for each patch.
Shapes    (B,3,32,32) -patch 2-> (B,16,16,96) -merge-> (B,8,8,192) -> (B,4,4,384) -> (B,K)
Lecture   training transformers on less data

    variant                      params   FLOPs   top-1     as the release prints it: CIFAR-10 for patch 2, Tiny-
    swin_pico_patch2_window4_32    7.5M  241.3M   94.46     ImageNet for patch 4; counts are ours, 1000 classes
    swin_pico_patch4_window4_64    7.5M  242.2M   60.87
"""

from __future__ import annotations

from vitrail.models.sl_swin import SMALL_DATA, Config, Model

__all__ = ["VARIANTS", "Config", "Model"]

VARIANTS = {
    "swin_pico_patch2_window4_32": Config(*SMALL_DATA, 32, 2, 2.0, spt=False, lsa=False),
    "swin_pico_patch4_window4_64": Config(*SMALL_DATA, 64, 4, 2.0, spt=False, lsa=False),
}
