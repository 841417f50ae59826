"""Going deeper with Image Transformers. Touvron, Cord, Sablayrolles, Synnaeve and Jegou, ICCV 2021, arXiv 2103.17239.

Idea      a deep ViT trains if every residual branch is scaled by a small learned vector (LayerScale) and if the class
          token comes late: patches first talk among themselves, then two blocks only sum them up (class attention).
Differs   from ViT: LayerScale; heads are mixed before and after the softmax (talking heads, Shazeer et al., 2020, arXiv
          2003.02436); no class token in the trunk; class attention updates nothing but the class token.
Shapes    (B,3,224,224) -patch 16-> (B,196,D) -24 blocks-> (B,196,D) -class token, 2 blocks-> (B,1,D) -> (B,K)
Lecture   training transformers on less data

The observed map of a talking-heads block is the softmax, before its heads are mixed: mixed rows sum to no constant.
Drop path has one rate for all blocks of the trunk and none in class attention.

    variant            params   FLOPs   top-1     ImageNet-1k, distilled, as timm evaluates the release
    cait_xxs24_224      12.0M   2.52G   78.40
    cait_xxs36_224      17.3M   3.76G   79.75
    cait_xs24_384       26.7M   19.2G   84.06
    cait_s24_224        46.9M   9.33G   83.48
    cait_s24_384        47.1M   32.1G   85.05
    cait_s36_384        68.4M   47.9G   85.46
    cait_m36_384       271.2M  172.9G   86.06
    cait_m48_448       356.5M  329.1G   86.48
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import attend, normalised, observe
from vitrail.layers.blocks import DropPath, Mlp, init_truncated_normal, residual
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import PatchEmbed
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the paper's table varies; `init_values` is where the scales of the branches start."""

    embed_dim: int
    depth: int
    num_heads: int
    img_size: int = 224
    init_values: float = 1e-5
    depth_token_only: int = 2
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "cait_xxs24_224": Config(192, 24, 4),
    "cait_xxs36_224": Config(192, 36, 4),
    "cait_xs24_384": Config(288, 24, 6, 384),
    "cait_s24_224": Config(384, 24, 8),
    "cait_s24_384": Config(384, 24, 8, 384),
    "cait_s36_384": Config(384, 36, 8, 384, init_values=1e-6),
    "cait_m36_384": Config(768, 36, 16, 384, init_values=1e-6),
    "cait_m48_448": Config(768, 48, 16, 448, init_values=1e-6),
}


class TalkingHeadAttention(nn.Module):
    """Self-attention whose heads are mixed before the softmax (`proj_l`) and after it (`proj_w`): (B, N, D) -> same."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        weights = observe(self, normalised(mix_heads(self.proj_l, logits), dim=-1))
        return self.proj((mix_heads(self.proj_w, weights) @ v).transpose(1, 2).flatten(2))


def mix_heads(mixer: nn.Linear, maps: Tensor) -> Tensor:
    """A linear layer over heads: (B, h, N, N) -> same. One product, since moving heads last costs two copies."""
    flat = maps.flatten(2)
    return torch.baddbmm(mixer.bias[:, None], mixer.weight.expand(len(flat), -1, -1), flat).view_as(maps)


class ClassAttention(nn.Module):
    """The class token, first of (B, 1 + N, D), attends to itself and the patches: -> (B, 1, D) (section 4)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x[:, :1], x)

    def read(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """What `queries` (B, T, D) gather from `tokens` (B, M, D): (B, T, D)."""
        parts = (self.q(queries), self.k(tokens), self.v(tokens))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.proj(attend(q, k, v, site=self).transpose(1, 2).flatten(2))


class ScaledBlock(nn.Module):
    """x + drop_path(gamma_1 * attn(norm1(x))), then the same with the MLP and gamma_2: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, init_values: float, drop_path: float = 0.0):
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), init_values))
        self.gamma_2 = nn.Parameter(torch.full((dim,), init_values))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, lambda x: self.gamma_1 * self.attn(self.norm1(x)), self.drop_path)
        return residual(x, lambda x: self.gamma_2 * self.mlp(self.norm2(x)), self.drop_path)


class ClassBlock(ScaledBlock):
    """The same on the class token alone, which reads the patches: (B, T, D) and (B, N, D) -> (B, T, D)."""

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
        token = token + self.drop_path(self.gamma_1 * self.attn(self.norm1(torch.cat([token, patches], dim=1))))
        return token + self.drop_path(self.gamma_2 * self.mlp(self.norm2(token)))


class Model(Classifier):
    """CaiT: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them: the position embedding is resized on the
    fly. Raises UserError where it does not.
    """

    num_prefix_tokens = 1

    def __init__(self, config: Config):
        super().__init__()
        dim, heads, scale = config.embed_dim, config.num_heads, config.init_values
        if dim % heads:
            raise UserError(f"embed_dim {dim} is not divisible by num_heads {heads}; change one of them")
        self.config = config
        self.num_features = dim
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.grid = self.patch_embed.grid(config.img_size, config.img_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.blocks = nn.Sequential(
            *[
                ScaledBlock(dim, TalkingHeadAttention(dim, heads), Mlp(dim, 4 * dim), scale, config.drop_path_rate)
                for _ in range(config.depth)
            ]
        )
        self.blocks_token_only = nn.ModuleList(
            [
                ClassBlock(dim, ClassAttention(dim, heads), Mlp(dim, 4 * dim), scale)
                for _ in range(config.depth_token_only)
            ]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Deviation 0.02 for all, biases 0, as in the authors' release."""
        init_truncated_normal(self)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions, not weights."""
        return {"cls_token", "pos_embed"}

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): the class token after its blocks and the patches after theirs, normalised."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        x = self.blocks(self.patch_embed(images) + resize_position(self.pos_embed, grid, 0, self.grid))
        token = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            token = block(token, x)
        return self.norm(torch.cat([token, x], dim=1))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, D) -> the class token, (B, D)."""
        return tokens[:, 0]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the patches of the last layer as a picture, (B, D, H/P, W/P)."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, grid)]
