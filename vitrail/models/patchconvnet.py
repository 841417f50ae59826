"""Augmenting Convolutional networks with attention-based aggregation. Touvron, Cord, El-Nouby, Bojanowski, Joulin,
Synnaeve, Verbeek and Jegou, 2021, arXiv 2112.13692.

Idea      replace a convnet's average pooling by one attention of a class token to the patches: its map comes for free.
Differs   from CaiT: the trunk has convolutions where CaiT has attention and MLP, at one resolution, without positions;
          class attention has one block with one head. The multi-class model asks with one token a class.
Shapes    (B,3,224,224) -four 3 x 3 / 2 convolutions-> (B,14,14,384) -60 blocks-> (B,14,14,384)
          -class token, one block-> (B,1,384) -> (B,K)
Lecture   hybrids of convolution and attention

The convolutional branch bears the name `attn.qkv_pos` in the release. Drop path has one rate for all trunk blocks.
The multi-class model's keys are the patches alone, and every class has a head of one output.

    variant                       params   FLOPs   top-1     ImageNet-1k from scratch (README of the release)
    patchconvnet_s60_224           25.2M   3.98G    82.1
    patchconvnet_s120_224          47.7M   7.49G    83.2
    patchconvnet_b60_224           99.4M   15.8G    83.5
    patchconvnet_b120_224         188.6M   29.8G    84.1
    patchconvnet_l60_224          176.0M   28.0G       -
    patchconvnet_l120_224         334.3M   52.8G       -
    patchconvnet_s60_multi_224     25.6M   5.31G    81.1
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vitrail.layers.attention import Places, place
from vitrail.layers.blocks import DropPath, Mlp, init_truncated_normal, residual
from vitrail.models.cait import ClassAttention, ClassBlock
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the paper's table varies; `init_values` is where the scales of the branches start."""

    embed_dim: int
    depth: int
    multiclass: bool = False
    init_values: float = 1e-6
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "patchconvnet_s60_224": Config(384, 60, init_values=1e-4),
    "patchconvnet_s120_224": Config(384, 120),
    "patchconvnet_b60_224": Config(768, 60),
    "patchconvnet_b120_224": Config(768, 120),
    "patchconvnet_l60_224": Config(1024, 60),
    "patchconvnet_l120_224": Config(1024, 120),
    "patchconvnet_s60_multi_224": Config(384, 60, multiclass=True, init_values=1e-4),
}


class ConvStem(nn.Module):
    """Four 3 x 3 convolutions of stride 2, GELU between: (B, C, H, W) -> (B, H/16, W/16, D), sides rounded up."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        self.proj = nn.Sequential()
        for before, after in pairwise(widths):
            self.proj.append(nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)))
            self.proj.append(nn.GELU())
        del self.proj[-1]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Positions down and across for an image of these sides, in pixels."""
        return -(-height // 16), -(-width // 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1).contiguous()


class SqueezeExcite(nn.Module):
    """Each channel times a gate in (0, 1) that the means of all channels set: (B, D, H, W) -> same."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(dim, dim // 4, 1)
        self.conv_expand = nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.conv_expand(self.conv_reduce(means).relu()).sigmoid()


class ConvBranch(nn.Module):
    """1 x 1, depthwise 3 x 3, squeeze and excite, 1 x 1: (B, H, W, D) -> same, in the memory order of channels last."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv_pos = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            SqueezeExcite(dim),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv_pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """x + drop_path(gamma_1 * attn(norm1(x))), the trunk's only branch: (B, H, W, D) -> same."""

    def __init__(self, dim: int, init_values: float, drop_path: float):
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), init_values))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ConvBranch(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, lambda x: self.gamma_1 * self.attn(self.norm1(x)), self.drop_path)


class MultiClassAttention(ClassAttention):
    """Class attention of T tokens, first of (B, T + N, D), to the patches alone: -> (B, T, D)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.num_tokens = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x[:, : self.num_tokens], x[:, self.num_tokens :])


def Model(config: Config) -> PlainModel:
    """The model with one class token or with one a class: images (B, C, H, W) -> logits (B, K)."""
    return MultiModel(config) if config.multiclass else PlainModel(config)


class PlainModel(Classifier):
    """PatchConvNet: images (B, C, H, W) of any size, normalised, -> logits (B, K)."""

    channels_last = True
    num_prefix_tokens = 1
    attention: type[ClassAttention] = ClassAttention

    def __init__(self, config: Config):
        super().__init__()
        dim, scale = config.embed_dim, config.init_values
        self.config = config
        self.num_features = dim
        self.patch_embed = ConvStem(config.in_chans, dim)
        self.grid = self.patch_embed.grid(config.img_size, config.img_size)
        self.blocks = nn.Sequential(*[ConvBlock(dim, scale, config.drop_path_rate) for _ in range(config.depth)])
        self.blocks_token_only = nn.ModuleList([ClassBlock(dim, self.attention(dim, 1), Mlp(dim, 3 * dim), scale)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.make_tokens(1)
        init_truncated_normal(self)  # the linear layers; convolutions start as torch's
        self.reset_classifier(config.num_classes)

    def make_tokens(self, count: int) -> None:
        """Fresh class tokens."""
        self.num_prefix_tokens = count
        self.cls_token = nn.Parameter(torch.empty(1, count, self.num_features))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens, not weights."""
        return {"cls_token"}

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T + N, D): class token(s) after their block and the trunk's patches, normalised."""
        x = self.blocks(self.patch_embed(images)).flatten(1, 2)
        token = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            token = block(token, x)
        return self.norm(torch.cat([token, x], dim=1))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, T + N, D) -> the class token, the mean of several, (B, D)."""
        return tokens[:, : self.num_prefix_tokens].mean(dim=1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the trunk's patches as a picture, (B, D, H/16, W/16)."""
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, self.patch_embed.grid(*images.shape[-2:]))]


class MultiModel(PlainModel):
    """PatchConvNet with one class token, and one head of one output, a class."""

    attention = MultiClassAttention

    def reset_classifier(self, num_classes: int) -> None:
        """Fresh class tokens and heads; 0 keeps the tokens, whose mean it gives instead of logits."""
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.make_tokens(num_classes)
            self.head = nn.ModuleList([nn.Linear(self.num_features, 1) for _ in range(num_classes)])
            self.init_head(self.head)

    def make_tokens(self, count: int) -> None:
        """Fresh class tokens, of which their attention knows the number."""
        super().make_tokens(count)
        for module in self.blocks_token_only.modules():
            if isinstance(module, MultiClassAttention):
                module.num_tokens = count

    def forward_features(self, images: Tensor) -> Tensor:
        """As the plain model; each class asks the whole picture, and what counts is where its keys lie."""
        place(self.blocks_token_only.get_submodule("0.attn"), lambda: self.places(images))
        return super().forward_features(images)

    def places(self, images: Tensor) -> Places:
        """The queries are one cell that covers the picture, the keys its patches."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        asks = torch.zeros(1, self.num_prefix_tokens, dtype=torch.long)
        return Places(asks, torch.arange(grid[0] * grid[1])[None, None], (1, 1), (grid,))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The logit of a class from its token: (B, T + N, D) -> (B, K), or with `pre_logits` their mean (B, D)."""
        if pre_logits or not isinstance(self.head, nn.ModuleList):
            return self.pool(features)
        weight = torch.cat([head.get_parameter("weight") for head in self.head])
        bias = torch.cat([head.get_parameter("bias") for head in self.head])
        return (features[:, : self.num_prefix_tokens] * weight).sum(dim=2) + bias
