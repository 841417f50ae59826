"""Pay Attention to MLPs. Liu, Dai, So and Le, NeurIPS 2021, arXiv 2105.08050.

Idea      one block: widen, let one half of the channels gate the other after a linear mix across tokens, narrow. The
          product makes the mix depend on what is seen, as attention does.
Differs   from MLP-Mixer: token and channel mixing in one residual branch, the tokens' mix multiplied in; the gate's
          weights start near 0 and its bias at 1, so a block starts as a plain MLP on one half.
Shapes    (B,3,224,224) -patch 16-> (B,196,D), in a block (B,196,6D) -gate-> (B,196,3D), -mean-> (B,D) -> (B,K)
Lecture   without attention

The authors released no code; this is timm's reading: the mean over tokens after a last norm, epsilon 1e-6 in the
blocks' norms and 1e-5 in the gate's. The paper prints 73.4M for B, 0.3M more than its description gives. It trains
with stochastic depth (`drop_path_rate`): 0 tiny, 0.05 small, 0.2 base.

    variant            params   FLOPs   top-1     Table 2: ImageNet-1k from scratch
    gmlp_ti16_224        5.9M   1.33G    72.3     (the paper's FLOPs: 1.4G, 4.5G, 15.8G)
    gmlp_s16_224        19.4M   4.39G    79.6
    gmlp_b16_224        73.1M   15.7G    81.6
    gmlp_nano8_32        382K    5.4M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vitrail.layers.blocks import DropPath, residual
from vitrail.models.mixer import TokenMixer


@dataclass(frozen=True)
class Config:
    """What Table 1 varies: the width; blocks are 6 embed_dim wide inside."""

    embed_dim: int
    depth: int = 30
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "gmlp_ti16_224": Config(128),
    "gmlp_s16_224": Config(256),
    "gmlp_b16_224": Config(512),
    "gmlp_nano8_32": Config(64, 8, 8, 32),
}


class SpatialGatingUnit(nn.Module):
    """u * (W norm(v) + b), u and v the halves of the channels, W across tokens (section 2.1): (B,N,F) -> (B,N,F/2)."""

    def __init__(self, dim: int, num_tokens: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim // 2)
        self.proj = nn.Linear(num_tokens, num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).transpose(1, 2)).transpose(1, 2)


class GatedMlp(nn.Module):
    """Linear, GELU, the gate that halves the width, linear: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden: int, num_tokens: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.gate = SpatialGatingUnit(hidden, num_tokens)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(self.act(self.fc1(x))))


class GatedBlock(nn.Module):
    """x + MLP(norm(x)), the MLP with its gate: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_tokens: int, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = GatedMlp(dim, 6 * dim, num_tokens)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, lambda x: self.mlp_channels(self.norm(x)), self.drop_path)


class Model(TokenMixer):
    """gMLP: images (B, C, S, S), normalised, -> logits (B, K), for one size of image."""

    def make_block(self, num_tokens: int) -> nn.Module:
        """One block: (B, num_tokens, D) -> (B, num_tokens, D)."""
        return GatedBlock(self.config.embed_dim, num_tokens, self.config.drop_path_rate)

    def init_weights(self) -> None:
        """As MLP-Mixer, but the gates open: v is 1 whatever the image (section 2.1)."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, SpatialGatingUnit):
                nn.init.normal_(module.proj.weight, std=1e-6)
                nn.init.ones_(module.proj.bias)
