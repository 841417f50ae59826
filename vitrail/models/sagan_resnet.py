"""Self-Attention Generative Adversarial Networks. Zhang, Goodfellow, Metaxas and Odena, ICML 2019, arXiv 1805.08318.

Idea      one map of middle size also looks at itself: attention with narrow queries and keys, let in by a scalar that
          starts at 0, so that the network first learns from what is near.
Differs   from the non-local block: queries and keys of C / 8 channels, no division of the logits, no norm but spectral
          normalisation of each projection, and the scalar; from ResNet-50: this block after the stage of stride 8.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -attention: 784 queries, 196 keys->
          (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7) -> (B,K)
Lecture   attention inside convolutional networks

The paper attends in a generator and a discriminator; here its block, `SelfAttention`, stands in a classifier, at the
map nearest to the 32 x 32 that the paper found best (table 1). The authors' code and the text differ, and the block
that most others use is a third one:

    sagan_resnet50          the code: values of C / 2 channels and a projection back, keys and values pooled
    sagan_resnet50_paper    the text: values of C / 8 channels and a projection back, nothing pooled
    sagan_resnet50_plain    others: values of C channels and no projection, nothing pooled, biases, no normalisation

Pooling comes after the projections, as in the code. There spectral normalisation takes one step of the power iteration
at every pass and keeps its vector while training; gradients flow through the step. No classifier is in the paper.

    variant                          params   FLOPs   top-1
    sagan_resnet50                    25.9M   4.40G       -
    sagan_resnet50_paper              25.7M   4.27G       -
    sagan_resnet50_plain              25.9M   4.70G       -
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import attend, global_places, place
from vitrail.models.attention_resnet import AttentionResNet, Bottleneck, Grid
from vitrail.models.nonlocal_resnet import tokens


@dataclass(frozen=True)
class Config:
    """ResNet's depths and the width of its first stage, the stage that attention follows (0 to 3), and its kind.

    Values have dim / `value_ratio` channels; `out_proj` projects them back, `pool` halves the side of the key grid.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    attention_stage: int = 1
    value_ratio: int = 2
    out_proj: bool = True
    pool: bool = True
    spectral_norm: bool = True
    base_width: int = 64
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "sagan_resnet50": Config(),
    "sagan_resnet50_paper": Config(value_ratio=8, pool=False),
    "sagan_resnet50_plain": Config(value_ratio=1, out_proj=False, pool=False, spectral_norm=False),
}


class SpectralConv(nn.Conv2d):
    """A 1 x 1 convolution whose matrix W (out, in) is divided by its largest singular value: (B, in, H, W) ->
    (B, out, H, W). `u` (out,), kept between passes, follows the left singular vector (Miyato et al., ICLR 2018)."""

    u: Tensor

    def __init__(self, dim: int, out: int):
        super().__init__(dim, out, kernel_size=1, bias=False)
        self.register_buffer("u", torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        v = F.normalize(self.u.clone() @ matrix, dim=0)  # a copy, since backward reads it after the update
        u = F.normalize(matrix @ v, dim=0)
        if self.training:
            self.u.copy_(u.detach())
        return F.conv2d(x, self.weight / (u @ matrix @ v))


def plain_conv(dim: int, out: int) -> nn.Module:
    """A 1 x 1 convolution with bias, not normalised."""
    return nn.Conv2d(dim, out, kernel_size=1)


class SelfAttention(nn.Module):
    """x + gamma * attention(x), one head over all positions: (B, C, H, W) -> (B, C, H, W), figure 2.

    Queries and keys have C / 8 channels, values C / `value_ratio`, which `out_proj` projects back to C; with `pool`,
    keys and values are maxima over 2 x 2 positions. `conv(in, out)` makes the projections.
    """

    def __init__(
        self,
        dim: int,
        value_ratio: int = 2,
        out_proj: bool = True,
        pool: bool = True,
        conv: Callable[[int, int], nn.Module] = SpectralConv,
    ):
        super().__init__()
        self.theta = conv(dim, max(dim // 8, 1))
        self.phi = conv(dim, max(dim // 8, 1))
        self.g = conv(dim, max(dim // value_ratio, 1))
        self.attn = conv(max(dim // value_ratio, 1), dim) if out_proj else nn.Identity()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(()))

    def init_weights(self) -> None:
        """Xavier-uniform projections, which spectral normalisation rescales, and a closed gate."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x))
        grid, keys = (x.shape[-2], x.shape[-1]), (phi.shape[-2], phi.shape[-1])
        place(self, lambda: global_places(grid, keys))
        q, k, v = (tokens(part)[:, None] for part in (theta, phi, g))  # (B, 1, N, C/8), (B, 1, M, C/8), (B, 1, M, e)
        y = attend(q, k, v, site=self, scale=1.0)[:, 0]
        return x + self.gamma * self.attn(y.transpose(1, 2).unflatten(2, grid))


class Model(AttentionResNet):
    """A ResNet with SAGAN's block after one stage: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, width=config.base_width)

    def make_block(self, stage: int, index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """ResNet's block; the last of the stage attends."""
        block, config = super().make_block(stage, index, dim, width, stride, grid), self.config
        last = stage == config.attention_stage and index == config.depths[stage] - 1
        if isinstance(block, Bottleneck) and last:
            conv = SpectralConv if config.spectral_norm else plain_conv
            dim = self.out_channels(width)
            block.attn = SelfAttention(dim, config.value_ratio, config.out_proj, config.pool, conv)
        return block

    def init_weights(self) -> None:
        """ResNet's, and SAGAN's for its block."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.init_weights()
