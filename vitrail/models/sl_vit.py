"""Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492. Its two ideas, together
(`sl`) and each alone (`spt`, `lsa`); the baseline without either: `vit_pico.py`; on Swin: `sl_swin.py`.

Idea      shifted patch tokenization (SPT): a patch sees half a patch beyond its border, from four shifted copies of
          the image. Locality self-attention (LSA): a learned temperature, and no token attends to itself.
Differs   from ViT: those two; narrow, MLP ratio 2, no norm before the head's own, queries, keys, values without bias.
Shapes    (B,3,32,32) -shift-> (B,15,32,32) -patch 4-> (B,64,240) -project-> (B,64,192) -class token-> (B,65,192)
          -9 blocks-> (B,K)
Lecture   training transformers on less data

Modules are called as in the released code. It starts with positions and class token from N(0, 1), temperatures
d ** -0.5 by head and layer, and trains with stochastic depth 0.1, the same in every block. Images of other sizes are
not in the paper: positions are resized on the fly as in `vit.py`. Nano is vitrail's own size, for the studies.

    variant              params   FLOPs   top-1     as the release prints it: CIFAR-10 for patch 4, Tiny-ImageNet for
    sl_vit_patch4_32       2.9M  190.3M   94.53     patch 8; counts are ours, 1000 classes
    sl_vit_patch8_64       3.1M  199.2M   61.07
    spt_vit_patch4_32      2.9M  190.3M       -
    spt_vit_patch8_64      3.1M  199.2M       -
    lsa_vit_patch4_32      2.9M  187.9M       -
    lsa_vit_patch8_64      2.9M  189.7M       -
    sl_vit_nano_patch8_32  491K    6.8M       -
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import attend
from vitrail.layers.blocks import DropPath, residual
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import divided, windows
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """Sizes as in the release; `spt` and `lsa` say which of the two ideas it has."""

    patch_size: int
    img_size: int
    embed_dim: int = 192
    depth: int = 9
    num_heads: int = 12
    mlp_ratio: float = 2.0
    spt: bool = True
    lsa: bool = True
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0


VARIANTS = {
    "sl_vit_patch4_32": Config(4, 32),
    "sl_vit_patch8_64": Config(8, 64),
    "spt_vit_patch4_32": Config(4, 32, lsa=False),
    "spt_vit_patch8_64": Config(8, 64, lsa=False),
    "lsa_vit_patch4_32": Config(4, 32, spt=False),
    "lsa_vit_patch8_64": Config(8, 64, spt=False),
    "sl_vit_nano_patch8_32": Config(8, 32, 96, 4, 3),
}


class Patches(nn.Module):
    """Cut a map into P x P patches, each a vector in the order row, column, channel: (B, C, H, W) -> (B, N, P P C)."""

    def __init__(self, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        pixels = windows(x.permute(0, 2, 3, 1), self.patch_size, self.patch_size)  # (B N, P P, C)
        return pixels.reshape(len(x), -1, self.patch_size**2 * x.shape[1])


class ShiftedPatchTokenization(nn.Module):
    """SPT (section 3.2): the map and its four diagonal shifts by half a patch, then patches: (B, C, H, W) -> (B, N, D).

    What a shift brings in from outside is 0.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.shift = patch_size // 2
        width = 5 * in_chans * patch_size**2
        self.merging = nn.Sequential(Patches(patch_size), nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (self.shift,) * 4)
        corners = [(top, left) for top in (0, 2 * self.shift) for left in (0, 2 * self.shift)]
        shifted = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
        return self.merging(torch.cat([x, *shifted], dim=1))


def without_self(tokens: int, device: torch.device) -> Tensor:
    """True where query and key are different tokens: (N, N). LSA masks the diagonal (section 3.3)."""
    return ~torch.eye(tokens, dtype=torch.bool, device=device)


class Attention(nn.Module):
    """Self-attention, or with `lsa` a temperature for each head and no token's own key: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, drop: float, lsa: bool):
        super().__init__()
        self.num_heads = num_heads
        self.lsa = lsa
        if lsa:
            self.scale = nn.Parameter(torch.full((num_heads,), (dim // num_heads) ** -0.5))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        if self.lsa:
            mask = without_self(x.shape[1], x.device)
            x = attend(q * self.scale[:, None, None], k, v, site=self, bias=mask, scale=1.0)
        else:
            x = attend(q, k, v, site=self)
        return self.to_out(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The MLP: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden: int, drop: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(drop), nn.Linear(hidden, dim), nn.Dropout(drop)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """A branch with its norm before it: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Block(nn.ModuleList):
    """Attention and MLP, each with its norm before it and a shortcut around: (B, N, D) -> (B, N, D)."""

    def forward(self, x: Tensor, drop_path: DropPath) -> Tensor:
        for branch in self.children():
            x = residual(x, branch, drop_path)
        return x


class Transformer(nn.Module):
    """Blocks of attention and MLP: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: Config):
        super().__init__()
        dim, drop = config.embed_dim, config.drop_rate
        self.layers = nn.ModuleList()
        for _ in range(config.depth):
            attention = Attention(dim, config.num_heads, drop, config.lsa)
            mlp = FeedForward(dim, int(dim * config.mlp_ratio), drop)
            self.layers.append(Block([PreNorm(dim, attention), PreNorm(dim, mlp)]))
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.drop_path)
        return x


class Model(Classifier):
    """The small-data ViT: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the patch divides them: positions are resized on the fly. Raises
    UserError where it does not.
    """

    blocks_are = r"transformer\.layers\.\d+"
    head_name = "mlp_head.1"
    num_prefix_tokens = 1

    def __init__(self, config: Config):
        super().__init__()
        dim, patch = config.embed_dim, config.patch_size
        if dim % config.num_heads:
            raise UserError(f"embed_dim {dim} is not divisible by num_heads {config.num_heads}; change one of them")
        self.config = config
        self.num_features = dim
        self.grid = divided(config.img_size, config.img_size, patch, "patch size")
        self.to_patch_embedding: nn.Module = (
            ShiftedPatchTokenization(patch, config.in_chans, dim)
            if config.spt
            else nn.Sequential(Patches(patch), nn.Linear(config.in_chans * patch**2, dim))
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, 1 + self.grid[0] * self.grid[1], dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(config.drop_rate)
        self.transformer = Transformer(config)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim))
        self.reset_classifier(config.num_classes)
        self.init_head(self)

    def init_head(self, head: nn.Module) -> None:
        """Xavier-normal weights, biases 0: the head as all linear layers."""
        for module in head.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Token, positions and temperatures."""
        return {"pos_embedding", "cls_token"} | {n for n, _ in self.named_parameters() if n.endswith(".scale")}

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches down and across."""
        return divided(images.shape[-2], images.shape[-1], self.config.patch_size, "patch size")

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): all tokens after the last block and the head's norm."""
        grid = self.grid_of(images)
        x = self.to_patch_embedding(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.dropout(x + resize_position(self.pos_embedding, grid, 1, self.grid))
        return self.mlp_head[0](self.transformer(x))

    def pool(self, tokens: Tensor) -> Tensor:
        """The class token, (B, D)."""
        return tokens[:, 0]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the patch tokens of the last layer as a picture, (B, D, H/P, W/P)."""
        grid = self.grid_of(images)
        return [self.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, grid)]
