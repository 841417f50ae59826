"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. Dosovitskiy et al., ICLR 2021,
arXiv 2010.11929. Sizes Ti and S: How to train your ViT? Steiner et al., 2021, arXiv 2106.10270. Sizes g and G and the
MAP head: Scaling Vision Transformers. Zhai et al., 2021, arXiv 2106.04560. SigLIP's image towers (MAP head without
class token): Zhai et al., 2023, arXiv 2303.15343.

Idea      an image is a sequence of patches: project each, add a learned position, run a plain transformer encoder.
Differs   from the encoder of Vaswani et al.: norms before attention and MLP, a class token to read the answer from.
Shapes    (B,3,224,224) -patch 16-> (B,196,768) -class token-> (B,197,768) -12 blocks-> (B,197,768) -> (B,K)
Lecture   the vision transformer

`global_pool` reads the answer from the class token (`token`), from the mean over patches (`avg`: norm first, mean
second, as in the authors' code) or from one learned query that attends to all patches (`map`); the latter two have no
class token. `representation_size` inserts the pre-training head's hidden layer (`pre_logits`, tanh). The paper's
dropout sits after the position embedding, the attention output and both MLP layers: one rate, `drop_rate`. While
training `patch_drop_rate` of the patches is left out, at that much less cost (PatchDropout).
Sizes for 8 x 8 to 64 x 64 images: `vit_pico.py`. SigLIP's B/32 at 256 and L/16 at 512 are left out: they use GELU's
tanh approximation.

    variant                          params   FLOPs   top-1     ImageNet-1k: AugReg weights as timm evaluates
    vit_tiny_patch16_224               5.7M   1.25G   75.45     them where the cell is filled; FLOPs are multiply-adds
    vit_tiny_patch16_384               5.8M   4.68G   78.44
    vit_small_patch32_224             22.9M   1.14G   76.01
    vit_small_patch32_384             22.9M       -       -
    vit_small_patch16_224             22.1M   4.60G   81.40
    vit_small_patch16_384             22.2M   15.5G   83.81
    vit_small_patch8_224              22.1M   22.4G       -
    vit_base_patch32_224              88.2M   4.41G   80.73
    vit_base_patch32_384              88.3M   13.0G   83.36
    vit_base_patch16_224              86.6M   17.6G   84.53
    vit_base_patch16_384              86.9M   55.5G   86.01
    vit_base_patch8_224               86.6M   78.2G   85.84
    vit_large_patch32_224            306.5M   15.4G       -
    vit_large_patch32_384            306.6M       -   81.51
    vit_large_patch16_224            304.3M   61.6G   85.86
    vit_large_patch16_384            304.7M  191.1G   87.10
    vit_large_patch14_224            304.2M   81.0G       -
    vit_huge_patch14_224             632.0M  167.3G       -
    vit_giant_patch14_224           1012.6M  267.0G       -
    vit_gigantic_patch14_224        1844.4M  483.7G       -
    vit_base_patch16_gap_224          86.6M       -       -
    vit_huge_patch14_gap_224         632.0M       -       -
    vit_huge_patch16_gap_448         632.9M       -       -
    vit_giant_patch16_gap_224       1012.8M       -       -
    vit_base_patch16_siglip_224       93.7M   17.7G       -
    vit_base_patch16_siglip_256       93.7M       -       -
    vit_base_patch16_siglip_384       93.9M       -       -
    vit_base_patch16_siglip_512       94.3M       -       -
    vit_large_patch16_siglip_256     317.0M       -       -
    vit_large_patch16_siglip_384     317.3M       -       -
    vit_base_patch16_siglip_gap_224   86.6M       -       -
    vit_base_patch16_siglip_gap_256   86.6M       -       -
    vit_base_patch16_siglip_gap_384   86.9M       -       -
    vit_base_patch16_siglip_gap_512   87.2M       -       -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Attention, AttentionPool
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_xavier
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import PatchDropout, PatchEmbed
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the papers' tables vary. `img_size` is the side of the square the position embedding is made for."""

    patch_size: int
    img_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    global_pool: Literal["token", "avg", "map"] = "token"
    representation_size: int = 0
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    patch_drop_rate: float = 0.0


TINY, SMALL, BASE, LARGE, HUGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1280, 32, 16)

VARIANTS = {
    "vit_tiny_patch16_224": Config(16, 224, *TINY),
    "vit_tiny_patch16_384": Config(16, 384, *TINY),
    "vit_small_patch32_224": Config(32, 224, *SMALL),
    "vit_small_patch32_384": Config(32, 384, *SMALL),
    "vit_small_patch16_224": Config(16, 224, *SMALL),
    "vit_small_patch16_384": Config(16, 384, *SMALL),
    "vit_small_patch8_224": Config(8, 224, *SMALL),
    "vit_base_patch32_224": Config(32, 224, *BASE),
    "vit_base_patch32_384": Config(32, 384, *BASE),
    "vit_base_patch16_224": Config(16, 224, *BASE),
    "vit_base_patch16_384": Config(16, 384, *BASE),
    "vit_base_patch8_224": Config(8, 224, *BASE),
    "vit_large_patch32_224": Config(32, 224, *LARGE),
    "vit_large_patch32_384": Config(32, 384, *LARGE),
    "vit_large_patch16_224": Config(16, 224, *LARGE),
    "vit_large_patch16_384": Config(16, 384, *LARGE),
    "vit_large_patch14_224": Config(14, 224, *LARGE),
    "vit_huge_patch14_224": Config(14, 224, *HUGE),
    "vit_giant_patch14_224": Config(14, 224, 1408, 40, 16, mlp_ratio=48 / 11),
    "vit_gigantic_patch14_224": Config(14, 224, 1664, 48, 16, mlp_ratio=64 / 13),
    "vit_base_patch16_gap_224": Config(16, 224, 768, 12, 16, global_pool="avg"),  # timm gives this one 16 heads
    "vit_huge_patch14_gap_224": Config(14, 224, *HUGE, global_pool="avg"),
    "vit_huge_patch16_gap_448": Config(16, 448, *HUGE, global_pool="avg"),
    "vit_giant_patch16_gap_224": Config(16, 224, 1408, 40, 16, mlp_ratio=48 / 11, global_pool="avg"),
    "vit_base_patch16_siglip_224": Config(16, 224, *BASE, global_pool="map"),
    "vit_base_patch16_siglip_256": Config(16, 256, *BASE, global_pool="map"),
    "vit_base_patch16_siglip_384": Config(16, 384, *BASE, global_pool="map"),
    "vit_base_patch16_siglip_512": Config(16, 512, *BASE, global_pool="map"),
    "vit_large_patch16_siglip_256": Config(16, 256, *LARGE, global_pool="map"),
    "vit_large_patch16_siglip_384": Config(16, 384, *LARGE, global_pool="map"),
    "vit_base_patch16_siglip_gap_224": Config(16, 224, *BASE, global_pool="avg"),
    "vit_base_patch16_siglip_gap_256": Config(16, 256, *BASE, global_pool="avg"),
    "vit_base_patch16_siglip_gap_384": Config(16, 384, *BASE, global_pool="avg"),
    "vit_base_patch16_siglip_gap_512": Config(16, 512, *BASE, global_pool="avg"),
}


class Model(Classifier):
    """The vision transformer: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them: the position embedding is resized on the
    fly. Raises UserError where it does not.
    """

    num_prefix_tokens = 1
    head: nn.Module

    def __init__(self, config: Config):
        super().__init__()
        dim = config.embed_dim
        if dim % config.num_heads:
            raise UserError(f"embed_dim {dim} is not divisible by num_heads {config.num_heads}; change one of them")
        self.config = config
        self.num_features = config.representation_size or dim
        self.num_prefix_tokens = type(self).num_prefix_tokens if config.global_pool == "token" else 0
        self.patch_embed = self.make_patch_embed()
        self.grid = self.patch_embed.grid(config.img_size, config.img_size)
        self.make_tokens()
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_positions(), dim))
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, self.num_prefix_tokens)
        self.blocks = nn.Sequential(
            *[
                Block(
                    dim,
                    attn=Attention(dim, config.num_heads, config.drop_rate),
                    mlp=Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate),
                    drop_path=rate,
                )
                for rate in drop_path_rates(config.drop_path_rate, config.depth)
            ]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if config.global_pool == "map":
            self.attn_pool = AttentionPool(dim, config.num_heads, Mlp(dim, int(dim * config.mlp_ratio)))
        self.pre_logits: nn.Module = nn.Identity()
        if config.representation_size:
            self.pre_logits = nn.Sequential()
            self.pre_logits.add_module("fc", nn.Linear(dim, config.representation_size))
            self.pre_logits.add_module("act", nn.Tanh())
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initialisation, with big_vision's deviation for positions: all of it follows the width."""
        init_xavier(self)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=self.patch_embed.proj.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.patch_embed.proj.get_parameter("bias"))
        nn.init.normal_(self.pos_embed, std=self.config.embed_dim**-0.5)
        for token in self.prefix_tokens():
            nn.init.zeros_(token)

    def make_patch_embed(self) -> PatchEmbed:
        """What turns an image into patch tokens."""
        return PatchEmbed(self.config.patch_size, self.config.in_chans, self.config.embed_dim)

    def make_tokens(self) -> None:
        """Learned tokens that stand before the patches."""
        if self.config.global_pool == "token":
            self.cls_token = nn.Parameter(torch.empty(1, 1, self.config.embed_dim))

    def num_positions(self) -> int:
        """Entries of the position embedding: class token and patches."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    def init_head(self, head: nn.Module) -> None:
        """As the other linear layers."""
        init_xavier(head)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions, not weights."""
        return {"pos_embed", "cls_token", "attn_pool.latent"}

    def prefix_tokens(self) -> list[Tensor]:
        """Learned tokens, (1, 1, D) each, that stand before the patches."""
        return [self.cls_token] if self.config.global_pool == "token" else []

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T + N, D): prefix tokens and patches, each with its position."""
        return self.with_positions(self.patch_embed(images), self.patch_embed.grid(*images.shape[-2:]))

    def with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Projected patches (B, N, D) of a grid -> (B, T + N, D): prefix tokens before them, positions added."""
        x = torch.cat([token.expand(len(patches), -1, -1) for token in self.prefix_tokens()] + [patches], dim=1)
        return self.pos_drop(x + resize_position(self.pos_embed, grid, self.num_prefix_tokens, self.grid))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): all tokens after the last block and norm."""
        return self.norm(self.blocks(self.patch_drop(self.embed(images))))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> the features (B, num_features) that the last layer reads."""
        if self.config.global_pool == "token":
            x = tokens[:, 0]
        elif self.config.global_pool == "avg":
            x = tokens.mean(dim=1)
        else:
            x = self.attn_pool(tokens)
        return self.pre_logits(x)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the patch tokens of the last layer as a picture, (B, D, H/P, W/P). A plain ViT has one scale."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, grid)]
