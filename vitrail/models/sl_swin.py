"""Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: its two ideas on a small Swin.
On ViT: `sl_vit.py`; the small Swin without them: `swin_pico.py`.

Idea      every tokenization, of the image and between stages, is a shifted one (SPT), and attention in the windows has
          a learned temperature and no token's own key (LSA).
Differs   from Swin: those two; three stages, windows of 4, MLP ratio 2, and a learned position for each patch.
Shapes    (B,3,32,32) -shift, patch 2-> (B,16,16,96) -shift, merge-> (B,8,8,192) -> (B,4,4,384) -> (B,K)
Lecture   training transformers on less data

Modules are called as in the released code, where a merging closes its stage, and layers start as PyTorch's do. It
trains with stochastic depth 0.1. Images of other sizes are not in the paper: positions are resized on the fly as in
`vit.py`, and windows that do not divide a map as in `swin.py`.

    variant                         params   FLOPs   top-1     as the release prints it: CIFAR-10 for patch 2, Tiny-
    sl_swin_tiny_patch2_window4_32   10.2M  283.0M   95.93     ImageNet for patch 4; counts are ours, 1000 classes
    sl_swin_tiny_patch4_window4_64   10.2M  283.0M   64.95
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.layers.attention import attend
from vitrail.layers.blocks import Block, Mlp, drop_path_rates
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import divided
from vitrail.models import swin
from vitrail.models.protocol import Classifier
from vitrail.models.sl_vit import ShiftedPatchTokenization, without_self


@dataclass(frozen=True)
class Config(swin.Config):
    """Swin's; `spt` and `lsa` say which of the two ideas it has."""

    spt: bool = True
    lsa: bool = True


SMALL_DATA = 96, (2, 6, 4), (3, 6, 12), 4

VARIANTS = {
    "sl_swin_tiny_patch2_window4_32": Config(*SMALL_DATA, img_size=32, patch_size=2, mlp_ratio=2.0),
    "sl_swin_tiny_patch4_window4_64": Config(*SMALL_DATA, img_size=64, patch_size=4, mlp_ratio=2.0),
}


class LocalityWindowAttention(swin.WindowAttention):
    """LSA inside windows: a temperature for each head, and no token's own key. (B, H, W, D) -> (B, H, W, D)."""

    qk_scale = 1.0  # the queries bring theirs

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, grid: int):
        super().__init__(dim, num_heads, window_size, shifted, grid)
        self.scale = nn.Parameter(torch.full((num_heads,), (dim // num_heads) ** -0.5))

    def bias(self, folds: int, grid: tuple[int, int]) -> Tensor:
        """Positions and masks: (1, h, N, N) or (folds, h, N, N), folds = B * G."""
        bias = super().bias(folds, grid)
        return bias.masked_fill(~without_self(bias.shape[-1], bias.device), float("-inf"))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B * G, N, D) -> (B * G, h, N, d) three times, the queries scaled."""
        q, k, v = super().queries_keys_values(x)
        return q * self.scale[:, None, None], k, v


class ShiftedTokens(ShiftedPatchTokenization):
    """SPT as a map: (B, C, H, W) -> (B, H/P, W/P, D)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return super().forward(x).unflatten(1, (height // (self.shift * 2), width // (self.shift * 2)))
