"""Transformer in Transformer. Han et al., NeurIPS 2021, arXiv 2103.00112.

Idea      a patch is a sentence of 16 words, 4 x 4 pixels each: a small transformer runs among the words of every patch,
          and what they have become is added to the patch's token, layer by layer.
Differs   from ViT: two streams of tokens, words of width 12 to 40 inside each patch and the patches themselves;
          queries, keys and values without bias; a convolution (7 x 7, stride 4) makes the words.
Shapes    (B,3,224,224) -words-> (B 196,16,24) -all words of a patch-> (B,196,384) -class token-> (B,197,384)
          -12 blocks-> (B,197,384) -> (B,K)
Lecture   the vision transformer

Every patch is padded and convolved by itself, as released: no word sees another patch's pixels before the outer
attention. The paper's figures for B count a frozen table of zeros that the code never reads: 65.6M. The models were
trained with stochastic depth 0.1. `legacy` is timm's first port: words from the whole picture, and another way from
words to patches (`LegacyBlock`); its weights are published. Sizes other than `img_size` resize the positions, our
extension: the released code takes one size.

    variant                      params   FLOPs   top-1     ImageNet-1k from scratch
    tnt_ti_patch16_224             6.1M    1.4G    73.9
    tnt_s_patch16_224             23.8M    5.2G    81.5
    tnt_b_patch16_224             65.4M   14.1G    82.9
    tnt_s_legacy_patch16_224      23.8M    5.2G    81.5
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, attend, place
from vitrail.layers.blocks import DropPath, Mlp, drop_path_rates, init_truncated_normal, residual
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import divided, windows
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the paper's table 1 varies: "outer" is the stream of patches, "inner" that of words."""

    embed_dim: int
    num_heads_outer: int
    inner_dim: int
    num_heads_inner: int = 4
    depth: int = 12
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0
    legacy: bool = False


VARIANTS = {
    "tnt_ti_patch16_224": Config(192, 3, 12, num_heads_inner=2),
    "tnt_s_patch16_224": Config(384, 6, 24),
    "tnt_b_patch16_224": Config(640, 10, 40),
    "tnt_s_legacy_patch16_224": Config(384, 6, 24, legacy=True),
}

WORD = 4
"""Side of a word in pixels, the stride of the convolution that makes them."""


class Attention(nn.Module):
    """Multi-head self-attention, queries and keys from one matrix, values from another, no biases: (B, N, D)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise UserError(
                f"width {dim} is not divisible by {num_heads} heads; change embed_dim, inner_dim or the heads"
            )
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.proj(attend(q, k, v, site=self).transpose(1, 2).flatten(2))


class PixelEmbed(nn.Module):
    """The words of every patch: (B, C, H, W) -> (B n, c, w, w) for n patches of w x w words."""

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=7, stride=WORD, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.cut(images, self.patch_size))

    def cut(self, maps: Tensor, side: int) -> Tensor:
        """(B, C, H, W) -> (B n, C, side, side), patches in reading order."""
        return windows(maps.movedim(1, -1), side, side).transpose(1, 2).unflatten(2, (side, side))


class LegacyPixelEmbed(PixelEmbed):
    """Convolve the whole picture, then cut: words at a patch's border see their neighbours' pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return self.cut(self.proj(images), self.patch_size // WORD)


class Block(nn.Module):
    """Words among themselves, words to their patch, patches among themselves (figure 1, equations 5 to 9)."""

    def __init__(self, config: Config, num_words: int, drop_path: float):
        super().__init__()
        dim, inner = config.embed_dim, config.inner_dim
        self.norm_in = nn.LayerNorm(inner)
        self.attn_in = Attention(inner, config.num_heads_inner)
        self.norm_mlp_in = nn.LayerNorm(inner)
        self.mlp_in = Mlp(inner, 4 * inner)
        self.make_bridge(dim, inner, num_words)
        self.norm_out = nn.LayerNorm(dim)
        self.attn_out = Attention(dim, config.num_heads_outer)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def make_bridge(self, dim: int, inner: int, num_words: int) -> None:
        """What leads from the words of a patch to its token."""
        self.norm1_proj = nn.LayerNorm(num_words * inner)
        self.proj = nn.Linear(num_words * inner, dim, bias=False)
        self.norm2_proj = nn.LayerNorm(dim)

    def cross(self, words: Tensor, patches: int) -> Tensor:
        """Words (B n, w w, c) -> what they add to their patches, (B, n, D)."""
        return self.norm2_proj(self.proj(self.norm1_proj(words.reshape(-1, patches, words[0].numel()))))

    def forward(self, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        words = residual(words, lambda x: self.attn_in(self.norm_in(x)), self.drop_path)
        words = residual(words, lambda x: self.mlp_in(self.norm_mlp_in(x)), self.drop_path)
        told = self.cross(words, tokens.shape[1] - 1)
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:] + told], dim=1)  # the class token has no words
        tokens = residual(tokens, lambda x: self.attn_out(self.norm_out(x)), self.drop_path)
        return words, residual(tokens, lambda x: self.mlp(self.norm_mlp(x)), self.drop_path)


class LegacyBlock(Block):
    """Each word normalised by itself, a bias, and no norm of what is added."""

    def make_bridge(self, dim: int, inner: int, num_words: int) -> None:
        self.norm1_proj = nn.LayerNorm(inner)
        self.proj = nn.Linear(num_words * inner, dim)

    def cross(self, words: Tensor, patches: int) -> Tensor:
        return self.proj(self.norm1_proj(words).reshape(-1, patches, words[0].numel()))


def word_places(grid: tuple[int, int], side: int) -> Places:
    """Where the words of every patch lie on the picture, a grid of side x side words a patch."""
    fine = grid[0] * side, grid[1] * side
    cells = windows(torch.arange(fine[0] * fine[1]).view(1, *fine, 1), side, side)[..., 0]  # (n, w w)
    return Places(cells, cells[:, None], fine, (fine,))


class Model(Classifier):
    """Transformer in transformer: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them: the patches' positions are resized on the
    fly, the words' stay. Raises UserError where it does not.
    """

    num_prefix_tokens = 1
    release_keys = (
        (r"outer_tokens", ""),
        (r"outer_pos", "patch_pos"),
        (r"inner_pos", "pixel_pos"),
        (r"patch_embed\.(.+)", r"pixel_embed.\1"),
        (r"(blocks\.\d+\.|)proj_norm([12])\.(.+)", r"\1norm\2_proj.\3"),
        (r"(.+)\.inner_norm1\.(.+)", r"\1.norm_in.\2"),
        (r"(.+)\.inner_norm2\.(.+)", r"\1.norm_mlp_in.\2"),
        (r"(.+)\.inner_(attn|mlp)\.(.+)", r"\1.\2_in.\3"),
        (r"(.+)\.outer_norm1\.(.+)", r"\1.norm_out.\2"),
        (r"(.+)\.outer_norm2\.(.+)", r"\1.norm_mlp.\2"),
        (r"(.+)\.outer_attn\.(.+)", r"\1.attn_out.\2"),
        (r"(.+)\.outer_mlp\.(.+)", r"\1.mlp.\2"),
    )

    def __init__(self, config: Config):
        super().__init__()
        dim, inner = config.embed_dim, config.inner_dim
        if config.patch_size % WORD:
            raise UserError(
                f"patch_size {config.patch_size} is not divisible by the {WORD} pixels of a word; change it"
            )
        self.config = config
        self.num_features = dim
        self.grid = self.grid_of(config.img_size, config.img_size)
        self.side = config.patch_size // WORD
        embed, block = (LegacyPixelEmbed, LegacyBlock) if config.legacy else (PixelEmbed, Block)
        self.pixel_embed = embed(config.patch_size, config.in_chans, inner)
        self.pixel_pos = nn.Parameter(torch.empty(1, inner, self.side, self.side))
        num_words = self.side**2
        self.norm1_proj = nn.LayerNorm(num_words * inner)
        self.proj = nn.Linear(num_words * inner, dim)
        self.norm2_proj = nn.LayerNorm(dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.patch_pos = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], dim))
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList([block(config, num_words, rate) for rate in rates])
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals of deviation 0.02 for linear layers, the token and positions, as the authors."""
        init_truncated_normal(self)
        for parameter in (self.cls_token, self.patch_pos, self.pixel_pos):
            nn.init.trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions, not weights."""
        return {"cls_token", "patch_pos", "pixel_pos"}

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across of an image of these sides, in pixels."""
        return divided(height, width, self.config.patch_size, "patch size")

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): class token and patches after the last block and norm."""
        grid = self.grid_of(*images.shape[-2:])
        words = (self.pixel_embed(images) + self.pixel_pos).flatten(2).transpose(1, 2)  # (B n, w w, c)
        patches = words.reshape(len(images), grid[0] * grid[1], -1)
        patches = self.norm2_proj(self.proj(self.norm1_proj(patches)))
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + resize_position(self.patch_pos, grid, self.num_prefix_tokens, self.grid)
        for block in self.blocks:
            place(block.get_submodule("attn_in"), lambda: word_places(grid, self.side))
            words, tokens = block(words, tokens)
        return self.norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> the class token, (B, D)."""
        return tokens[:, 0]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the patches of the last layer as a picture, (B, D, H/P, W/P)."""
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, self.grid_of(*images.shape[-2:]))]
