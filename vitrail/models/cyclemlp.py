"""CycleMLP: A MLP-like Architecture for Dense Prediction. Chen, Xie, Ge, Chen, Liang and Luo, ICLR 2022,
arXiv 2107.10224.

Idea      a linear layer over channels that reads each channel one step before, at, or one step after its position, in
          turn: it sees a neighbourhood at the cost of a 1 x 1 convolution, on a map of any size.
Differs   from MLP-Mixer: no weights across tokens; one branch moves along the width, one along the height, one stays,
          and the picture weighs the three; a pyramid of four stages as in PVT, for dense prediction.
Shapes    (B,3,224,224) -conv, stride 4-> (B,56,56,64) -> (B,28,28,128) -> (B,14,14,320) -> (B,7,7,512) -> (B,K)
Lecture   without attention

The release reads the moved channels by a deformable convolution with fixed offsets, kept in its state dict; here the
map is padded with zeros and its channels are masked, which is the same sum. `sfc_h`, in the release's words, moves
along the width, `sfc_w` along the height. A side of S pixels gives (S - 3) // 4 + 1 positions, since the first
convolution (7 x 7) pads by 2. The Swin-like sizes T, S and B of the release's table are not in its code. Trained with
stochastic depth, `drop_path_rate=0.1`.

    variant             params   FLOPs   top-1     Table 2: ImageNet-1k from scratch
    cyclemlp_b1_224        15M    2.1G    78.9
    cyclemlp_b2_224        27M    3.9G    81.6
    cyclemlp_b3_224        38M    6.9G    82.4
    cyclemlp_b4_224        52M   10.1G    83.0
    cyclemlp_b5_224        76M   12.3G    83.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import normalised
from vitrail.layers.blocks import Block, Mlp, drop_path_rates, init_truncated_normal
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What Table 1 varies, each a value a stage."""

    depths: tuple[int, ...]
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "cyclemlp_b1_224": Config((2, 2, 4, 2)),
    "cyclemlp_b2_224": Config((2, 3, 10, 3)),
    "cyclemlp_b3_224": Config((3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)),
    "cyclemlp_b4_224": Config((3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)),
    "cyclemlp_b5_224": Config((3, 4, 24, 3), embed_dims=(96, 192, 384, 768)),
}


class CycleFC(nn.Conv2d):
    """A linear layer that reads channel c a step of 0, +1, -1, 0, ... away (equation 2): (B, H, W, D) -> (B, H, W, D).

    The steps go along `axis` of the map, 1 (H) or 2 (W); beyond its edge there are zeros. Its weights are those of a
    1 x 1 convolution. Shifting costs one padded copy and three products, which compilers fuse.
    """

    reads: Tensor
    """(3, D): which channels read the cell before, here, after."""

    def __init__(self, dim: int, axis: int):
        super().__init__(dim, dim, kernel_size=1)
        self.axis = axis
        steps = (torch.arange(dim) + 1) % 3 - 1
        reads = torch.stack([steps == step for step in (-1, 0, 1)]).to(self.weight.dtype)
        self.register_buffer("reads", reads, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        before, here, after = self.reads
        size = x.shape[self.axis]
        padded = F.pad(x, (0, 0, 0, 0, 1, 1) if self.axis == 1 else (0, 0, 1, 1))
        moved = torch.addcmul(x * here, padded.narrow(self.axis, 0, size), before)
        moved = torch.addcmul(moved, padded.narrow(self.axis, 2, size), after)
        return F.linear(moved, self.weight.flatten(1), self.bias)


class CycleMixer(nn.Module):
    """Three branches, weighed a channel at a time by their mean over the map: (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.sfc_h = CycleFC(dim, axis=2)
        self.sfc_w = CycleFC(dim, axis=1)
        self.reweight = Mlp(dim, dim // 4, out=3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w, c = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        logits = self.reweight((h + w + c).mean(dim=(1, 2)))
        shares = normalised(logits.unflatten(1, (1, 1, -1, 3)), dim=-1)  # channel by channel: (B, 1, 1, D, 3)
        of_h, of_w, of_c = shares.unbind(-1)
        return self.proj(h * of_h + w * of_w + c * of_c)


class Projection(nn.Module):
    """A strided convolution between two stages: (B, H, W, D) -> (B, H/2, W/2, out), halves rounded up."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, out, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stem(nn.Module):
    """Overlapping patches: (B, C, H, W) -> (B, H/4, W/4, D). Raises UserError for images that hold not one."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=7, stride=4, padding=2)

    def check(self, height: int, width: int) -> None:
        """Raise UserError where the convolution has no place."""
        if min(height, width) < 3:
            raise UserError(f"img_size {height}x{width} is too small for the first convolution; give at least 3x3")

    def forward(self, images: Tensor) -> Tensor:
        self.check(*images.shape[-2:])
        return self.proj(images).permute(0, 2, 3, 1)


class Model(Classifier):
    """CycleMLP: images (B, C, H, W) of any size, normalised, -> logits (B, K)."""

    blocks_are = r"network\.\d+\.\d+"
    channels_last = True
    release_keys = ((r"network\..+\.offset", ""),)  # the fixed steps of the deformable convolutions

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dims = config.embed_dims
        self.num_features = dims[-1]
        self.patch_embed = Stem(config.in_chans, dims[0])
        self.patch_embed.check(config.img_size, config.img_size)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.network = nn.Sequential()  # stages at even places, the projections between them at odd ones
        for stage, (dim, depth, ratio) in enumerate(zip(dims, config.depths, config.mlp_ratios, strict=True)):
            if stage:
                self.network.append(Projection(dims[stage - 1], dim))
            blocks = [Block(dim, CycleMixer(dim), Mlp(dim, ratio * dim), next(rates), eps=1e-5) for _ in range(depth)]
            self.network.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1])
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals of deviation 0.02 for all linear layers, CycleFC included; convolutions as torch draws."""
        init_truncated_normal(self)
        for module in self.modules():
            if isinstance(module, CycleFC):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/32, W/32): the last stage's map, normalised."""
        return self.norm(self.network(self.patch_embed(images))).permute(0, 3, 1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean(dim=(2, 3))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The map of each stage (B, D, H/s, W/s), strides s = 4, 8, 16 and 32, before the last norm."""
        maps = [self.patch_embed(images)]
        for part in self.network:
            maps.append(part(maps[-1]))
        return [x.permute(0, 3, 1, 2) for x in maps[1::2]]
