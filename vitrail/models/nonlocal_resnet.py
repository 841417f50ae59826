"""Non-local Neural Networks. Wang, Girshick, Gupta and He, CVPR 2018, arXiv 1711.07971.

Idea      what leaves a convolutional block is joined by a weighted mean over all positions of the map; the block that
          adds it starts as the identity, so any number of them can be put into a trained ResNet.
Differs   from ResNet: blocks of one head between the residual blocks of the middle stages; from the transformer: no
          positions, no MLP, keys and values from a map of half the side, and three pairwise functions besides
          softmax's.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -non-local after blocks 2 and 4->
          (B,512,28,28) -> (B,1024,14,14) -non-local after blocks 2, 4 and 6-> (B,1024,14,14) -> (B,2048,7,7) -> (B,K)
Lecture   attention inside convolutional networks

Pairwise functions (section 3.2): `gaussian` exp(x_i . x_j), `embedded` exp(theta(x_i) . phi(x_j)), `dot`
theta(x_i) . phi(x_j) and `concat` relu(w_f . [theta(x_i), phi(x_j)]). The first two, divided by their sum, are a
softmax over keys and leave maps; the last two are divided by the number of keys and leave none.

The authors' code divides the embedded logits by the square root of their width, which equation (3) does not: it stands
here as in the code, and only for `embedded`, since the code has no `gaussian`. Keys and values are read from maps
pooled before their projection (section 3.3), as there. Five blocks stand where the code puts them, after every second
block of the stages of strides 8 and 16, in ResNet-101 after every seventh of the latter; one block stands before the
last block of stride 16 (table 2b). The paper trains on videos and prints no top-1 for images.

    variant                          params   FLOPs   top-1
    nonlocal_resnet50_1              27.7M   4.36G       -
    nonlocal_resnet50_5              32.9M   5.56G       -
    nonlocal_resnet50_5_gaussian     29.2M   5.01G       -
    nonlocal_resnet50_5_dot          32.9M   5.56G       -
    nonlocal_resnet50_5_concat       32.9M   5.47G       -
    nonlocal_resnet50_10             40.3M   7.03G       -
    nonlocal_resnet101_5             51.9M   9.27G       -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import attend, global_places, place
from vitrail.models.attention_resnet import AttentionResNet, Bottleneck, Grid

Pairwise = Literal["gaussian", "embedded", "dot", "concat"]
After = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Config:
    """What table 2 varies: `nonlocal_after` counts, stage by stage, the blocks that a non-local block follows.

    `base_width` is that inside the blocks of the first stage.
    """

    depths: tuple[int, int, int, int]
    nonlocal_after: After
    pairwise: Pairwise = "embedded"
    base_width: int = 64
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
ONE: After = ((), (), (4,), ())
FIVE: After = ((), (1, 3), (1, 3, 5), ())
TEN: After = ((), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5), ())

VARIANTS = {
    "nonlocal_resnet50_1": Config(R50, ONE),
    "nonlocal_resnet50_5": Config(R50, FIVE),
    "nonlocal_resnet50_5_gaussian": Config(R50, FIVE, "gaussian"),
    "nonlocal_resnet50_5_dot": Config(R50, FIVE, "dot"),
    "nonlocal_resnet50_5_concat": Config(R50, FIVE, "concat"),
    "nonlocal_resnet50_10": Config(R50, TEN),
    "nonlocal_resnet101_5": Config(R101, ((), (1, 3), (6, 13, 20), ())),
}


class NonLocal(nn.Module):
    """x + bn(out(mean over positions j of f(x_i, x_j) g(x_j))): (B, C, H, W) -> (B, C, H, W), figure 2.

    This one has no theta and phi: f is exp(x_i . x_j), the Gaussian. N = H W queries, M = H W / 4 keys, e = C / 2.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.inner = max(dim // 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.g = nn.Conv2d(dim, self.inner, kernel_size=1)
        self.out = nn.Conv2d(self.inner, dim, kernel_size=1)
        self.bn = nn.BatchNorm2d(dim)

    def init_weights(self) -> None:
        """Small projections, and a norm at zero: the block is the identity at first (section 4.1)."""
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.bn.weight)

    def mean(self, x: Tensor, pooled: Tensor, values: Tensor) -> Tensor:
        """`values` (B, M, e), weighed for each position of x (B, C, H, W) by the keys in `pooled`: -> (B, N, e)."""
        return self.attend(x, pooled, values, scale=1.0)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """One head: maps of queries (B, d, H, W) and keys (B, d, h, w), values (B, M, e) -> (B, N, e)."""
        grids = (queries.shape[-2], queries.shape[-1]), (keys.shape[-2], keys.shape[-1])
        place(self, lambda: global_places(*grids))
        q, k = tokens(queries)[:, None], tokens(keys)[:, None]
        return attend(q, k, values[:, None], site=self, scale=scale)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x)
        y = self.mean(x, pooled, tokens(self.g(pooled)))
        return x + self.bn(self.out(y.transpose(1, 2).unflatten(2, x.shape[-2:])))


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


class EmbeddedNonLocal(NonLocal):
    """f = exp(theta(x_i) . phi(x_j) / sqrt(d)): softmax attention, d = C / 2."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.theta = nn.Conv2d(dim, self.inner, kernel_size=1)
        self.phi = nn.Conv2d(dim, self.inner, kernel_size=1)

    def mean(self, x: Tensor, pooled: Tensor, values: Tensor) -> Tensor:
        return self.attend(self.theta(x), self.phi(pooled), values, scale=self.inner**-0.5)


class DotNonLocal(EmbeddedNonLocal):
    """f = theta(x_i) . phi(x_j) / M. No softmax, no map."""

    def mean(self, x: Tensor, pooled: Tensor, values: Tensor) -> Tensor:
        return tokens(self.theta(x)) @ self.phi(pooled).flatten(2) @ (values / values.shape[1])


class ConcatNonLocal(EmbeddedNonLocal):
    """f = relu(w_f . [theta(x_i), phi(x_j)]) / M: a number for each query plus one for each key, no map."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.w_f = nn.Parameter(torch.empty(2, self.inner))  # the half that reads theta, the half that reads phi

    def init_weights(self) -> None:
        """As the projections."""
        super().init_weights()
        nn.init.normal_(self.w_f, std=0.01)

    def mean(self, x: Tensor, pooled: Tensor, values: Tensor) -> Tensor:
        query, key = tokens(self.theta(x)) @ self.w_f[0], tokens(self.phi(pooled)) @ self.w_f[1]  # (B, N), (B, M)
        return F.relu(query[:, :, None] + key[:, None]) @ (values / values.shape[1])


BLOCKS: dict[Pairwise, type[NonLocal]] = {
    "gaussian": NonLocal,
    "embedded": EmbeddedNonLocal,
    "dot": DotNonLocal,
    "concat": ConcatNonLocal,
}


class Model(AttentionResNet):
    """A ResNet with non-local blocks: images (B, C, H, W), normalised, -> logits (B, K)."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config, width=config.base_width)

    def make_block(self, stage: int, index: int, dim: int, width: int, stride: int, grid: Grid) -> nn.Module:
        """ResNet's block, with a non-local one after it where the configuration says so."""
        block = super().make_block(stage, index, dim, width, stride, grid)
        if isinstance(block, Bottleneck) and index in self.config.nonlocal_after[stage]:
            block.attn = BLOCKS[self.config.pairwise](self.out_channels(width))
        return block

    def init_weights(self) -> None:
        """ResNet's, and each non-local block the identity."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.init_weights()
