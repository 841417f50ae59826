"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases. d'Ascoli et al., ICML 2021,
arXiv 2103.10697.

Idea      let attention start as a convolution and leave it when the data say so: every head mixes what it looks for
          (content) with where it looks (position), by a learned gate.
Differs   from DeiT: ten of twelve blocks have gated positional self-attention (GPSA), in which each head starts on one
          neighbour of a small kernel; the class token joins after them; no biases in queries, keys and values.
Shapes    (B,3,224,224) -patch 16-> (B,196,432) -10 GPSA blocks-> (B,196,432) -class token-> (B,197,432)
          -2 blocks-> (B,197,432) -> (B,K)
Lecture   hybrids of convolution and attention

The positional logits are a linear function of (dx, dy, dx^2 + dy^2), key less query in patches, so a head's map is a
Gaussian around the place it attends to. The sum of a row of mixed weights is 1; the released code divides by it once
more, and so do we. Sizes other than `img_size` resize the learned positions and recompute the offsets; the released
code takes squares only. The models were trained with stochastic depth 0.1. FLOPs are counted.

    variant                params   FLOPs   top-1     ImageNet-1k from scratch, 224 x 224
    convit_tiny              5.7M   1.25G    73.1
    convit_small            27.8M   5.75G    81.3
    convit_base             86.5M   17.5G    82.4
    convit_tiny_plus        10.0M   2.13G    76.7
    convit_small_plus       49.0M   10.0G    82.2
    convit_base_plus       153.1M   30.7G    82.5
    convit_nano_patch8_32  564K    7.8M       -     vitrail's own size, for the studies, 32 x 32
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Attention, attention_weights, normalised, observe
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal, residual
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import PatchEmbed
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What the paper varies. `embed_dim` is the whole width (timm: a head's); `local_up_to_layer` counts the blocks
    with GPSA and `locality_strength` says how narrow their heads start."""

    embed_dim: int
    num_heads: int
    depth: int = 12
    local_up_to_layer: int = 10
    locality_strength: float = 1.0
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "convit_tiny": Config(192, 4),
    "convit_small": Config(432, 9),
    "convit_base": Config(768, 16),
    "convit_tiny_plus": Config(256, 4),
    "convit_small_plus": Config(576, 9),
    "convit_base_plus": Config(1024, 16),
    "convit_nano_patch8_32": Config(96, 3, depth=4, local_up_to_layer=3, patch_size=8, img_size=32),
}


def relative_offsets(grid: tuple[int, int]) -> Tensor:
    """(dx, dy, dx^2 + dy^2) from each query to each key of a grid of H x W patches: (H W, H W, 3)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    dx, dy = columns[None, :] - columns[:, None], rows[None, :] - rows[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2], dim=-1).float()


class GPSA(nn.Module):
    """Gated positional self-attention (section 3): (B, N, D) and offsets (N, N, 3) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3, num_heads)
        self.gating_param = nn.Parameter(torch.ones(num_heads))  # the gate starts at 0.73 for position

    def init_local(self, strength: float) -> None:
        """Start as a convolution: values pass through, head p looks at the p-th cell of a K x K kernel, K^2 <= h.

        -strength |offset - cell|^2 is the logit wanted; multiplied out, its constant cancels in the softmax.
        """
        side = int(self.num_heads**0.5)
        cells = torch.cartesian_prod(torch.arange(side), torch.arange(side)) - (side - 1) / 2  # (K K, 2): dx, dy
        with torch.no_grad():
            nn.init.eye_(self.v.weight)
            self.pos_proj.weight[: side**2, :2] = 2 * cells
            self.pos_proj.weight[: side**2, 2] = -1
            self.pos_proj.weight.mul_(strength)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        content = attention_weights(q, k)
        position = normalised(self.pos_proj(offsets).permute(2, 0, 1), dim=-1)  # (h, N, N), the same for all images
        gate = self.gating_param.sigmoid().view(-1, 1, 1)
        weights = (1 - gate) * content + gate * position
        weights = observe(self, weights / weights.sum(dim=-1, keepdim=True))
        return self.proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class LocalBlock(Block):
    """The plain block with GPSA, which needs to know where its tokens are."""

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:  # type: ignore[override]
        x = residual(x, lambda x: self.attn(self.norm1(x), offsets), self.drop_path1)
        return residual(x, lambda x: self.mlp(self.norm2(x)), self.drop_path2)


class Model(Classifier):
    """ConViT: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them: the position embedding is resized on the
    fly. Raises UserError where it does not.
    """

    num_prefix_tokens = 1
    offsets: Tensor

    def __init__(self, config: Config):
        super().__init__()
        dim, local = config.embed_dim, config.local_up_to_layer
        if dim % config.num_heads:
            raise UserError(f"embed_dim {dim} is not divisible by num_heads {config.num_heads}; change one of them")
        if not 0 <= local < config.depth:
            raise UserError(f"local_up_to_layer is {local}; the class token needs a block after them: 0 to depth - 1")
        self.config = config
        self.num_features = dim
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.grid = self.patch_embed.grid(config.img_size, config.img_size)
        self.register_buffer("offsets", relative_offsets(self.grid), persistent=False)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(
            [
                *[LocalBlock(dim, GPSA(dim, config.num_heads), Mlp(dim, 4 * dim), rate) for rate in rates[:local]],
                *[
                    Block(dim, Attention(dim, config.num_heads, qkv_bias=False), Mlp(dim, 4 * dim), rate)
                    for rate in rates[local:]
                ],
            ]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals of deviation 0.02, then the local start."""
        init_truncated_normal(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, GPSA):
                module.init_local(self.config.locality_strength)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions, not weights."""
        return {"cls_token", "pos_embed"}

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): class token and patches after the last block and norm."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        x = self.patch_embed(images) + resize_position(self.pos_embed, grid, 0, self.grid)
        offsets = self.offsets if grid == self.grid else relative_offsets(grid).to(self.offsets)
        for block in self.blocks[: self.config.local_up_to_layer]:
            x = block(x, offsets)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks[self.config.local_up_to_layer :]:
            x = block(x)
        return self.norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> the class token, (B, D)."""
        return tokens[:, 0]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the patches of the last layer as a picture, (B, D, H/P, W/P)."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        return [patches.transpose(1, 2).unflatten(2, grid)]
