"""S2-MLPv2: Improved Spatial-Shift MLP Architecture for Vision. Yu, Li, Cai, Sun and Li, 2021, arXiv 2108.01072.

Idea      shift a map in two opposite orders, keep a third as it is, and let the picture itself weigh the three.
Differs   from S2-MLP: three branches joined by split attention (as in ResNeSt), small patches and a pyramid of two
          stages (as in ViP), MLPs 3 times as wide as the map; layer norms in the blocks only.
Shapes    (B,3,224,224) -patch 7-> (B,32,32,192) -4 blocks, patch 2-> (B,16,16,384) -14 blocks, mean-> (B,384) -> (B,K)
Lecture   without attention

The authors released no code. Their text leaves the width of the hidden layer in split attention open: a quarter of the
map's is what meets the printed 25M and 55M, 6.9G and 16.3G. Split attention reads the sum over all cells and has no
biases, as in the text's equations.

    variant                        params   FLOPs   top-1     ImageNet-1k from scratch
    s2mlpv2_small_patch7_224          25M    6.9G    82.0
    s2mlpv2_medium_patch7_224         55M   16.3G    83.6
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vitrail.layers.attention import normalised
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal
from vitrail.layers.tokens import PatchEmbed, divided
from vitrail.models.protocol import Classifier
from vitrail.models.s2mlp import check_width, shift


@dataclass(frozen=True)
class Config:
    """What the paper's table of settings varies: width and depth of both stages. Between them 2 x 2 patches merge."""

    embed_dims: tuple[int, int]
    depths: tuple[int, int]
    patch_size: int = 7
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "s2mlpv2_small_patch7_224": Config((192, 384), (4, 14)),
    "s2mlpv2_medium_patch7_224": Config((256, 512), (7, 17)),
}


class SplitAttention(nn.Module):
    """Weigh three maps, a channel at a time, by what they show together: 3 of (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 4, bias=False)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 4, 3 * dim, bias=False)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        seen = (x + y + z).sum(dim=(1, 2))
        logits = self.fc2(self.act(self.fc1(seen)))  # (B, 3 D)
        a, b, c = normalised(logits.unflatten(1, (3, 1, 1, -1)), dim=1).unbind(1)  # each (B, 1, 1, D)
        return x * a + y * b + z * c


class S2Attention(nn.Module):
    """Three maps from one, the first shifted, the second shifted with H and W exchanged: (B, H, W, D), same."""

    def __init__(self, dim: int):
        super().__init__()
        check_width(dim)
        self.fc1 = nn.Linear(dim, 3 * dim)
        self.split_attention = SplitAttention(dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, y, z = self.fc1(x).chunk(3, dim=-1)
        crossed = shift(y.transpose(1, 2)).transpose(1, 2)
        return self.fc2(self.split_attention(shift(x), crossed, z))


class Stage(nn.Module):
    """Patches, then blocks: (B, C, H, W) -> (B, D, H/P, W/P)."""

    def __init__(self, patch_size: int, in_chans: int, dim: int, rates: list[float]):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, in_chans, dim)
        self.blocks = nn.Sequential(
            *[Block(dim, S2Attention(dim), Mlp(dim, 3 * dim), rate, eps=1e-5) for rate in rates]
        )

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed.grid(*x.shape[-2:])
        return self.blocks(self.patch_embed(x).unflatten(1, grid)).permute(0, 3, 1, 2)


class Model(Classifier):
    """S2-MLPv2: images (B, C, H, W), normalised, -> logits (B, K).

    Sides are multiples of twice the patch. Raises UserError where they are not.
    """

    blocks_are = r"stages\.\d+\.blocks\.\d+"
    channels_last = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.check(config.img_size, config.img_size)
        (fine, coarse), (first, second) = config.embed_dims, config.depths
        self.num_features = coarse
        rates = drop_path_rates(config.drop_path_rate, first + second)
        self.stages = nn.Sequential(
            Stage(config.patch_size, config.in_chans, fine, rates[:first]),
            Stage(2, fine, coarse, rates[first:]),
        )
        self.reset_classifier(config.num_classes)
        init_truncated_normal(self)

    def check(self, height: int, width: int) -> None:
        """Raise UserError where the patches of either stage do not fit."""
        divided(height, width, 2 * self.config.patch_size, "coarsest stride")

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/2P, W/2P): the last map."""
        self.check(*images.shape[-2:])
        return self.stages(images)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean(dim=(2, 3))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps of both stages, at strides P and 2P: 7 and 14, not the usual powers of two."""
        self.check(*images.shape[-2:])
        fine = self.stages[0](images)
        return [fine, self.stages[1](fine)]
