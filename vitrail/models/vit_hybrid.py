"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, the hybrids. Dosovitskiy et al.,
ICLR 2021, arXiv 2010.11929. R + Ti/16, R26 + S/32 and R50 + L/32: How to train your ViT? Steiner et al., 2021,
arXiv 2106.10270. The ResNet: Big Transfer (BiT). Kolesnikov et al., ECCV 2020, arXiv 1912.11370; weight
standardisation: Qiao et al., 2019, arXiv 1903.10520.

Idea      let the first layers be convolutions: the tokens are positions of a ResNet's map instead of patches of pixels.
Differs   from ViT: the patch embedding alone. From ResNet: GroupNorm of 32 groups for BatchNorm, every convolution's
          weights standardised, TensorFlow's "SAME" padding (the odd pixel at the bottom and the right).
Shapes    (B,3,224,224) -7x7/2, pool/2-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -1x1->
          (B,196,768) -class token-> (B,197,768) -12 blocks-> (B,K)
Lecture   the vision transformer

`layers` are the units of each stage. R50 of B/16 has the three units of the last stage in the third instead, 3-4-9, so
that it ends at stride 16. The two sizes Ti keep of the ResNet its root, which the name calls s16, but which reduces by
4: with patches of 8 the whole steps by 32 pixels.

The figures are timm's, where GroupNorm adds 1e-5 and weights become (w - mean) / sqrt(var + 1e-8). The authors' JAX
network adds 1e-6 and has (w - mean) / (std + 1e-5).

    variant                  params   FLOPs   top-1     ImageNet-1k: weights pre-trained on ImageNet-21k, as timm
    vit_tiny_r_s16_p8_224      6.3M   0.43G   71.80     evaluates them where the cell is filled
    vit_tiny_r_s16_p8_384      6.4M   1.33G   75.96
    vit_small_r26_s32_224     36.4M   3.46G   81.86
    vit_small_r26_s32_384     36.5M   10.3G   84.07
    vit_base_r26_s32_224     101.4M   6.71G       -
    vit_base_r50_s16_224      98.7M   21.5G       -
    vit_base_r50_s16_384      99.0M   67.2G   84.99
    vit_large_r50_s32_224    329.0M   19.4G   84.43
    vit_large_r50_s32_384    329.1M   57.1G   86.19
    vit_nano_r_s8_p4_32        505K    4.4M       -     vitrail's own size, for the studies
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.tokens import PatchEmbed, divided
from vitrail.models import vit


@dataclass(frozen=True)
class Config(vit.Config):
    """ViT's, with patches counted in positions of the ResNet's map, and the units of each of its stages."""

    layers: tuple[int, ...] = ()


R26, R50, R50_S16 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 9)

VARIANTS = {
    "vit_tiny_r_s16_p8_224": Config(8, 224, *vit.TINY),
    "vit_tiny_r_s16_p8_384": Config(8, 384, *vit.TINY),
    "vit_small_r26_s32_224": Config(1, 224, *vit.SMALL, layers=R26),
    "vit_small_r26_s32_384": Config(1, 384, *vit.SMALL, layers=R26),
    "vit_base_r26_s32_224": Config(1, 224, *vit.BASE, layers=R26),
    "vit_base_r50_s16_224": Config(1, 224, *vit.BASE, layers=R50_S16),
    "vit_base_r50_s16_384": Config(1, 384, *vit.BASE, layers=R50_S16),
    "vit_large_r50_s32_224": Config(1, 224, *vit.LARGE, layers=R50),
    "vit_large_r50_s32_384": Config(1, 384, *vit.LARGE, layers=R50),
    "vit_nano_r_s8_p4_32": Config(4, 32, 96, 4, 3, mlp_ratio=2.0),
}


class StdConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 each, "SAME"-padded, no bias: (B, C, H, W) -> (B, D, H/s,
    W/s). Strides meet even sides only, so the padding is the same for every picture."""

    def __init__(self, dim: int, out: int, kernel_size: int, stride: int = 1):
        total = max(kernel_size - stride, 0)
        before, after = total // 2, total - total // 2
        super().__init__(dim, out, kernel_size, stride, padding=before if before == after else 0, bias=False)
        self.uneven = (before, after, before, after) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.flatten(1)[None]  # as channels of one sample: the fused kernel of BatchNorm does it
        weight = F.batch_norm(filters, None, None, training=True, eps=1e-8).view_as(self.weight)
        return F.conv2d(F.pad(x, self.uneven) if self.uneven else x, weight, None, self.stride, self.padding)


def group_norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, dim, eps=1e-5)


class Root(nn.Sequential):
    """7 x 7 convolution and pooling, stride 2 each: (B, C, H, W) -> (B, 64, H/4, W/4)."""

    def __init__(self, in_chans: int):
        super().__init__()
        self.conv = StdConv(in_chans, 64, kernel_size=7, stride=2)
        self.norm = group_norm(64)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)  # of even sides: "SAME"


class Downsample(nn.Sequential):
    """The shortcut of a stage's first unit: (B, C, H, W) -> (B, D, H/s, W/s)."""

    def __init__(self, dim: int, out: int, stride: int):
        super().__init__()
        self.conv = StdConv(dim, out, kernel_size=1, stride=stride)
        self.norm = group_norm(out)


class Unit(nn.Module):
    """A bottleneck, its last activation after the addition: (B, C, H, W) -> (B, 4 width, H/s, W/s)."""

    def __init__(self, dim: int, width: int, stride: int):
        super().__init__()
        out = width * 4
        self.downsample = Downsample(dim, out, stride) if dim != out or stride > 1 else nn.Identity()
        self.conv1 = StdConv(dim, width, kernel_size=1)
        self.norm1 = group_norm(width)
        self.conv2 = StdConv(width, width, kernel_size=3, stride=stride)
        self.norm2 = group_norm(width)
        self.conv3 = StdConv(width, out, kernel_size=1)
        self.norm3 = group_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class Stage(nn.Module):
    """`depth` units, the first with the stride: (B, C, H, W) -> (B, 4 width, H/s, W/s)."""

    def __init__(self, dim: int, width: int, depth: int, stride: int):
        super().__init__()
        units = [Unit(dim if index == 0 else width * 4, width, stride if index == 0 else 1) for index in range(depth)]
        self.blocks = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNet(nn.Sequential):
    """Root and stages, widths 64, 128, 256, 512: (B, C, H, W) -> (B, 256 .. 2048, H/4 .. H/32, W/4 .. W/32)."""

    def __init__(self, in_chans: int, layers: tuple[int, ...]):
        super().__init__()
        self.stem = Root(in_chans)
        self.stages = nn.Sequential()
        dim = 64
        for index, depth in enumerate(layers):
            width = 64 * 2**index
            self.stages.append(Stage(dim, width, depth, stride=1 if index == 0 else 2))
            dim = width * 4


class HybridEmbed(PatchEmbed):
    """The ResNet, then P x P patches of its map: (B, C, H, W) -> (B, N, D), N = HW / (P s)^2 at the map's stride s."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, layers: tuple[int, ...]):
        super().__init__(patch_size, 128 * 2 ** len(layers) if layers else 64, embed_dim)
        self.step = patch_size * 4 * 2 ** max(len(layers) - 1, 0)
        self.backbone = ResNet(in_chans, layers) if layers else Root(in_chans)
        self._modules["proj"] = self._modules.pop("proj")  # last: the model's first convolution is the root's

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens down and across of an image of these sides, in pixels."""
        return divided(height, width, self.step, "step of the tokens")

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.backbone(images))


def jax_keys(root: str) -> tuple[tuple[str, str], ...]:
    """The names of the authors' Flax arrays, which count stages and units from 1; `root` is the root's place."""
    keys = [(r"conv_root/(.+)", rf"{root}.conv.\1"), (r"gn_root/(.+)", rf"{root}.norm.\1")]
    for stage, unit in product(range(4), range(9)):
        there, here = f"block{stage + 1}/unit{unit + 1}/", f"patch_embed.backbone.stages.{stage}.blocks.{unit}."
        keys += [
            (there + r"conv([123])/(.+)", here + r"conv\1.\2"),
            (there + r"gn([123])/(.+)", here + r"norm\1.\2"),
            (there + r"conv_proj/(.+)", here + r"downsample.conv.\1"),
            (there + r"gn_proj/(.+)", here + r"downsample.norm.\1"),
        ]
    return tuple(keys)


class Model(vit.Model):
    """The vision transformer on a ResNet: images (B, C, H, W), normalised, -> logits (B, K).

    Sides other than `img_size` are accepted where the step of the tokens, 16 or 32 pixels, divides them.
    """

    blocks_are = r"(patch_embed\.backbone\.stages\.\d+\.)?blocks\.\d+"

    def __init__(self, config: Config):
        super().__init__(config)
        self.release_keys = jax_keys("patch_embed.backbone" + (".stem" if config.layers else ""))

    def make_patch_embed(self) -> PatchEmbed:
        """The ResNet and its projection."""
        return HybridEmbed(self.config.patch_size, self.config.in_chans, self.config.embed_dim, self.config.layers)

    def init_weights(self) -> None:
        """ViT's; convolutions by their fan-in, and the last norm of each unit 0, so that units start as shortcuts."""
        super().init_weights()
        for module in self.patch_embed.modules():
            if isinstance(module, StdConv):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, Unit):
                nn.init.zeros_(module.norm3.weight)
