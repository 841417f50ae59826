"""Vision Transformer for Small-Size Datasets. Lee, Lee and Song, 2021, arXiv 2112.13492: its two ideas on a small Swin.
On ViT: `sl_vit.py`. The small Swin without them, the paper's baseline: `swin_pico`.

Idea      every tokenization, of the image and between stages, is a shifted one (SPT), and attention in the windows has
          a learned temperature and no token's own key (LSA).
Differs   from Swin: those two; three stages, windows of 4, MLP ratio 2, and a learned position for each patch.
Shapes    (B,3,32,32) -shift, patch 2-> (B,16,16,96) -shift, merge-> (B,8,8,192) -> (B,4,4,384) -> (B,K)
Lecture   training transformers on less data

Modules are called as in the released code, where a merging closes its stage, and layers start as PyTorch's do. It
trains with stochastic depth 0.1. Images of other sizes are not in the paper: positions are resized on the fly as in
`vit.py`, and windows that do not divide a map as in `swin.py`.

    variant                         params   FLOPs   top-1     as the release prints it: CIFAR-10 for patch 2, Tiny-
    sl_swin_tiny_patch2_window4_32    8.9M  280.3M   95.93     ImageNet for patch 4; counts are ours, 1000 classes
    sl_swin_tiny_patch4_window4_64    9.0M  284.7M   64.95
    swin_pico_patch2_window4_32       7.5M  241.3M   94.46
    swin_pico_patch4_window4_64       7.5M  242.2M   60.87
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.layers.blocks import Block, Mlp, drop_path_rates
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import divided
from vitrail.models import swin
from vitrail.models.protocol import Classifier
from vitrail.models.sl_vit import ShiftedPatchTokenization, without_self


@dataclass(frozen=True)
class Config(swin.Config):
    """Swin's; `spt` and `lsa` say which of the two ideas it has."""

    spt: bool = True
    lsa: bool = True


SMALL_DATA = 96, (2, 6, 4), (3, 6, 12), 4

VARIANTS = {
    "sl_swin_tiny_patch2_window4_32": Config(*SMALL_DATA, img_size=32, patch_size=2, mlp_ratio=2.0),
    "sl_swin_tiny_patch4_window4_64": Config(*SMALL_DATA, img_size=64, patch_size=4, mlp_ratio=2.0),
    "swin_pico_patch2_window4_32": Config(*SMALL_DATA, 32, 2, 2.0, spt=False, lsa=False),
    "swin_pico_patch4_window4_64": Config(*SMALL_DATA, 64, 4, 2.0, spt=False, lsa=False),
}


class LocalityWindowAttention(swin.WindowAttention):
    """LSA inside windows: a temperature for each head, and no token's own key. (B, H, W, D) -> (B, H, W, D)."""

    qk_scale = 1.0  # the queries bring theirs

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, grid: int):
        super().__init__(dim, num_heads, window_size, shifted, grid)
        self.scale = nn.Parameter(torch.full((num_heads,), (dim // num_heads) ** -0.5))

    def position_bias(self) -> Tensor:
        """What the offset of query and key adds to the logits, -inf for a token and itself: (1, h, N, N)."""
        bias = super().position_bias()
        return bias.masked_fill(~without_self(bias.shape[-1], bias.device), float("-inf"))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B * G, N, D) -> (B * G, h, N, d) three times, the queries scaled."""
        q, k, v = super().queries_keys_values(x)
        return q * self.scale[:, None, None], k, v


class ShiftedEmbed(ShiftedPatchTokenization):
    """SPT of an image as a map: (B, C, H, W) -> (B, H/P, W/P, D)."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).unflatten(1, (images.shape[2] // self.patch_size, -1))


class ShiftedMerging(ShiftedEmbed):
    """SPT of a map, in place of Swin's merging: (B, H, W, D) -> (B, H/2, W/2, 2 D)."""

    def __init__(self, dim: int):
        super().__init__(2, dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class Stage(nn.Module):
    """Blocks (B, H, W, D) -> (B, H, W, D); `downsample` leads to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Model(Classifier):
    """The small-data Swin: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the stride of the last stage divides them: positions are resized on
    the fly. Raises UserError where it does not.
    """

    blocks_are = r"layers\.\d+\.blocks\.\d+"
    channels_last = True
    release_keys = ((r".+\.(relative_position_index|attn_mask)", ""),)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim, patch = config.embed_dim, config.patch_size
        self.grid = self.grid_of(config.img_size, config.img_size)
        embed = ShiftedEmbed if config.spt else swin.PatchEmbed
        self.patch_embed = embed(patch, config.in_chans, dim)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        merging = ShiftedMerging if config.spt else swin.PatchMerging
        attention = LocalityWindowAttention if config.lsa else swin.WindowAttention
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        side = self.grid[0]
        self.layers = nn.ModuleList()
        for depth, heads in zip(config.depths, config.num_heads, strict=True):
            last = len(self.layers) == len(config.depths) - 1
            blocks: list[nn.Module] = []
            for index in range(depth):
                attn = attention(dim, heads, config.window_size, bool(index % 2), side)
                blocks.append(Block(dim, attn, Mlp(dim, int(dim * config.mlp_ratio)), next(rates), eps=1e-5))
            self.layers.append(Stage(blocks, nn.Identity() if last else merging(dim)))
            side, dim = side // 2, dim if last else 2 * dim
        self.num_features = dim
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(config.num_classes)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across of an image of these sides."""
        patch, merged = self.config.patch_size, 2 ** (len(self.config.depths) - 1)
        down, across = divided(height, width, patch * merged, "stride of the last stage")
        return down * merged, across * merged

    def init_head(self, head: nn.Module) -> None:
        """As PyTorch starts it."""

    def no_weight_decay(self) -> set[str]:
        """Positions, tables of position biases and temperatures."""
        ends = "absolute_pos_embed", "relative_position_bias_table", "attn.scale"
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def stages(self, images: Tensor) -> list[Tensor]:
        """The map of each stage, (B, H, W, D)."""
        grid = self.grid_of(images.shape[-2], images.shape[-1])
        positions = resize_position(self.absolute_pos_embed, grid, 0, self.grid)
        x = self.patch_embed(images) + positions.unflatten(1, grid)
        maps = []
        for stage in self.layers:
            maps.append(stage(x))
            x = stage.get_submodule("downsample")(maps[-1])
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/s, W/s): the last stage's map, normalised."""
        return self.norm(self.stages(images)[-1]).permute(0, 3, 1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean((-2, -1))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The map of each stage (B, D, H/s, W/s), strides s = P, 2 P and 4 P, before the last norm."""
        return [x.permute(0, 3, 1, 2) for x in self.stages(images)]
