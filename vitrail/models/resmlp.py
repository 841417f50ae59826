"""ResMLP: Feedforward networks for image classification with data-efficient training. Touvron, Bojanowski, Caron, Cord
et al., TPAMI 2022, arXiv 2105.03404.

Idea      Mixer with less: one linear layer across tokens instead of an MLP, and no statistics anywhere: a learned
          scale and shift a channel where others normalise.
Differs   from MLP-Mixer: `Affine` for layer norm, a linear token mixer with bias, each branch scaled a channel (as
          CaiT's LayerScale), trained as DeiT on ImageNet-1k alone.
Shapes    (B,3,224,224) -patch 16-> (B,196,384) -12 blocks-> (B,196,384) -mean-> (B,384) -> (B,K)
Lecture   without attention

The paper closes a branch with a scale and a shift; the released code, followed here, has the scale alone. `init_values`
is what that scale starts from in the authors' code (timm starts the 12-layer model lower). The paper's B24 with
16 x 16 patches (116M) was not released; `resmlp_big_24_224` is its B24/8.

    variant                params   FLOPs   top-1     ImageNet-1k from scratch, as timm evaluates the release
    resmlp_12_224           15.4M   3.01G   76.66     (distilled: 77.95, 80.77, 81.15, 83.59)
    resmlp_24_224           30.0M   5.96G   79.38
    resmlp_36_224           44.7M   8.91G   79.77
    resmlp_big_24_224      129.1M  100.2G   81.03
    resmlp_nano8_32          416K    5.2M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.layers.blocks import DropPath, Mlp, init_truncated_normal, residual
from vitrail.models.mixer import TokenMixer


@dataclass(frozen=True)
class Config:
    """What Table 1 varies; `init_values` starts the scale of both branches. The channel MLP is 4 embed_dim wide."""

    patch_size: int
    depth: int
    embed_dim: int
    init_values: float
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "resmlp_12_224": Config(16, 12, 384, init_values=0.1),
    "resmlp_24_224": Config(16, 24, 384, init_values=1e-5),
    "resmlp_36_224": Config(16, 36, 384, init_values=1e-6),
    "resmlp_big_24_224": Config(8, 24, 768, init_values=1e-6),
    "resmlp_nano8_32": Config(8, 4, 96, init_values=0.1, img_size=32),
}


class Affine(nn.Module):
    """alpha x + beta, a channel each (equation 1): what takes the place of a norm. (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


def affine_names(model: nn.Module) -> set[str]:
    """The scales and shifts of a model's affine maps, which do not decay, like those of norms."""
    return {name for name, _ in model.named_parameters() if name.endswith((".alpha", ".beta"))}


class ResidualBlock(nn.Module):
    """x + ls1 A norm1(x) across tokens, then x + ls2 MLP(norm2(x)) (equations 2, 3): (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_tokens: int, init_values: float, drop_path: float):
        super().__init__()
        self.norm1 = Affine(dim)
        self.linear_tokens = nn.Linear(num_tokens, num_tokens)
        self.ls1 = nn.Parameter(torch.full((dim,), init_values))
        self.norm2 = Affine(dim)
        self.mlp_channels = Mlp(dim, 4 * dim)
        self.ls2 = nn.Parameter(torch.full((dim,), init_values))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, lambda x: self.ls1 * self.mixed(self.norm1(x)), self.drop_path)
        return residual(x, lambda x: self.ls2 * self.mlp_channels(self.norm2(x)), self.drop_path)

    def mixed(self, x: Tensor) -> Tensor:
        """One linear layer across tokens: (B, N, D) -> (B, N, D)."""
        return self.linear_tokens(x.transpose(1, 2)).transpose(1, 2)


class Model(TokenMixer):
    """ResMLP: images (B, C, S, S), normalised, -> logits (B, K), for one size of image."""

    release_keys = (
        (r"patch_embed\.(.+)", r"stem.\1"),
        (r"blocks\.(\d+)\.attn\.(.+)", r"blocks.\1.linear_tokens.\2"),
        (r"blocks\.(\d+)\.mlp\.(.+)", r"blocks.\1.mlp_channels.\2"),
        (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2"),
    )

    def make_block(self, num_tokens: int) -> nn.Module:
        """One block: (B, num_tokens, D) -> (B, num_tokens, D). All drop their branches at one rate."""
        config = self.config
        return ResidualBlock(config.embed_dim, num_tokens, config.init_values, config.drop_path_rate)

    def make_norm(self) -> nn.Module:
        """The last affine map."""
        return Affine(self.config.embed_dim)

    def no_weight_decay(self) -> set[str]:
        """What takes the place of norms."""
        return affine_names(self)

    def init_weights(self) -> None:
        """DeiT's; the patch projection as torch draws it."""
        init_truncated_normal(self)

    def init_head(self, head: nn.Module) -> None:
        """As the other linear layers."""
        init_truncated_normal(head)
