"""Better plain ViT baselines for ImageNet-1k. Beyer, Zhai and Kolesnikov, 2022, arXiv 2205.01580.

Idea      a plain ViT-S/16 learns ImageNet-1k without extra data or heavy regularisation: a few simple choices suffice.
Differs   from ViT: fixed sine-cosine positions, no class token, the mean over patches is read.
Shapes    (B,3,224,224) -patch 16-> (B,196,384) + sines and cosines -12 blocks-> (B,196,384) -mean-> (B,384) -> (B,K)
Lecture   the vision transformer

The released checkpoints have a hidden layer of D with tanh before the head (the name with `mlp_head`); the paper finds
the plain linear head as good. At other image sizes the positions are computed for the grid, not resized. The
authors' JAX code uses GELU's tanh approximation; here, as in our ViT, it is exact. Other sine-cosine tables are not
interchangeable: this one divides exponents by D/4 - 1 and lists x before y.

    variant                                  params   FLOPs   top-1     300 epochs on ImageNet-1k alone
    simple_vit_tiny_patch16_224                5.7M   1.25G       -
    simple_vit_small_patch32_224              22.9M   1.12G       -
    simple_vit_small_patch16_224              22.0M   4.57G       -
    simple_vit_base_patch32_224               88.2M   4.32G       -
    simple_vit_base_patch16_224               86.4M   17.5G       -
    simple_vit_large_patch16_224             304.1M   61.2G       -
    simple_vit_small_patch16_mlp_head_224     22.1M   4.57G    80.0
    simple_vit_nano_patch8_32                  415K    5.3M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.models import vit
from vitrail.models.vit import Config

VARIANTS = {
    "simple_vit_tiny_patch16_224": Config(16, 224, *vit.TINY, global_pool="avg"),
    "simple_vit_small_patch32_224": Config(32, 224, *vit.SMALL, global_pool="avg"),
    "simple_vit_small_patch16_224": Config(16, 224, *vit.SMALL, global_pool="avg"),
    "simple_vit_base_patch32_224": Config(32, 224, *vit.BASE, global_pool="avg"),
    "simple_vit_base_patch16_224": Config(16, 224, *vit.BASE, global_pool="avg"),
    "simple_vit_large_patch16_224": Config(16, 224, *vit.LARGE, global_pool="avg"),
    "simple_vit_small_patch16_mlp_head_224": Config(16, 224, *vit.SMALL, global_pool="avg", representation_size=384),
    "simple_vit_nano_patch8_32": Config(8, 32, 96, 4, 3, mlp_ratio=2.0, global_pool="avg"),
}


def sincos_positions(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """(1, H*W, D): sines and cosines of x, then of y, at D/4 wavelengths from 2 pi to 20000 pi patches."""
    if dim % 4 or dim < 8:
        raise UserError(f"embed_dim {dim} does not fit sine-cosine positions; choose a multiple of 4, at least 8")
    omega = 10000.0 ** -torch.linspace(0, 1, dim // 4, device=device)
    places = torch.cartesian_prod(*(torch.arange(side, device=device) for side in grid))
    y, x = (places[:, axis, None] * omega for axis in (0, 1))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]


class Model(vit.Model):
    """The plain ViT with fixed positions: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them. Raises UserError where it does not.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        del self.pos_embed  # what is computed is neither learned nor saved
        self.register_buffer("pos_embed", sincos_positions(self.grid, config.embed_dim), persistent=False)

    def init_weights(self) -> None:
        """As ViT, but for the last layer."""
        super().init_weights()
        self.init_head(self.head)

    def init_head(self, head: nn.Module) -> None:
        """Zero: all classes are equal at first."""
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Projected patches (B, N, D) of a grid -> the same with their positions, after the class token if any."""
        table: Tensor = self.pos_embed
        if grid != self.grid:
            table = sincos_positions(grid, patches.shape[-1], patches.device).to(patches)
        tokens = [token.expand(len(patches), -1, -1) for token in self.prefix_tokens()]
        return self.pos_drop(torch.cat([*tokens, patches + table], dim=1))
