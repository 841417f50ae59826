"""MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer. Mehta and Rastegari, ICLR 2022,
arXiv 2110.02178.

Idea      a convolution unfolds, multiplies and folds; put a transformer in place of the multiplication, and a layer
          sees the whole map while it keeps the order of pixels, so that positions need no embedding.
Differs   from MobileNetV2: a MobileViT block after the striding block of the last three stages. From ViT: pixels at the
          same offset of every 2 x 2 patch attend to each other, the four offsets apart; what a 3 x 3 convolution put
          into each pixel before carries the rest.
Shapes    (B,3,256,256) -> (B,64,64,64) -> (B,96,32,32) -unfold-> (4B,256,144) -fold-> (B,96,32,32) -> (B,128,16,16)
          -> (B,160,8,8) -1x1-> (B,640,8,8) -> (B,K)
Lecture   hybrids of convolution and attention

Maps of odd sides are resized bilinearly to the next even ones before the transformer and back after. The authors train
with dropout 0.1 (`drop_rate`: after attention, after the MLP and before the last layer) on images of 160 to 320 pixels,
in [0, 1] without further normalisation. Their own checkpoints read BGR; timm's copies of them read RGB.

    variant         params   FLOPs   top-1     ImageNet-1k, 256 x 256 (FLOPs are multiply-adds)
    mobilevit_xxs     1.3M   0.41G    69.0
    mobilevit_xs      2.3M   1.03G    74.8
    mobilevit_s       5.6M   2.00G    78.4
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import Attention, Places, place
from vitrail.layers.blocks import Block, Mlp, init_truncated_normal
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """`channels` of the five stages; `expansion` of the inverted residuals; transformers of the last three stages."""

    channels: tuple[int, int, int, int, int]
    expansion: int
    transformer_dims: tuple[int, int, int]
    transformer_depths: tuple[int, int, int] = (2, 4, 3)
    img_size: int = 256
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0


VARIANTS = {
    "mobilevit_xxs": Config((16, 24, 48, 64, 80), 2, (64, 80, 96)),
    "mobilevit_xs": Config((32, 48, 64, 80, 96), 4, (96, 120, 144)),
    "mobilevit_s": Config((32, 64, 96, 128, 160), 4, (144, 192, 240)),
}


class ConvNorm(nn.Sequential):
    """Convolution and BatchNorm: (B, C, H, W) -> (B, D, H/s, W/s), odd sides rounded up."""

    def __init__(self, dim: int, out: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)


class ConvNormAct(ConvNorm):
    """The same, and SiLU."""

    def __init__(self, dim: int, out: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__(dim, out, kernel_size, stride, groups)
        self.act = nn.SiLU()


class InvertedResidual(nn.Module):
    """MobileNetV2's block ("MV2"): expand, filter each channel, project without activation; a residual where shapes
    agree: (B, C, H, W) -> (B, D, H/s, W/s)."""

    def __init__(self, dim: int, out: int, expansion: int, stride: int):
        super().__init__()
        hidden = dim * expansion
        self.residual = stride == 1 and dim == out
        self.conv1_1x1 = ConvNormAct(dim, hidden, kernel_size=1)
        self.conv2_kxk = ConvNormAct(hidden, hidden, kernel_size=3, stride=stride, groups=hidden)
        self.conv3_1x1 = ConvNorm(hidden, out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.residual else y


def unfold(x: Tensor) -> Tensor:
    """(B, D, H, W) of even sides -> (B * 4, H/2 * W/2, D): the pixels at each of the four offsets of a 2 x 2 patch."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, D, H/2, 2, W/2, 2)
    return x.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(0, 2)


def fold(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `unfold`: (B * 4, H/2 * W/2, D) -> (B, D, H, W)."""
    x = x.unflatten(1, (height // 2, width // 2)).unflatten(0, (-1, 2, 2))  # (B, 2, 2, H/2, W/2, D)
    return x.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)


def places(height: int, width: int) -> Places:
    """Where the tokens of the four folds lie on a map of even sides."""
    cells = unfold(torch.arange(height * width).view(1, 1, height, width))[..., 0]
    return Places(cells, cells[:, None], (height, width), ((height, width),))


class MobileViTBlock(nn.Module):
    """Local convolution, transformer over the unfolded map, fusion with the input: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, transformer_dim: int, depth: int, num_heads: int = 4, drop: float = 0.0):
        super().__init__()
        self.conv_kxk = ConvNormAct(dim, dim, kernel_size=3)
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, kernel_size=1, bias=False)
        self.transformer = nn.Sequential()
        for _ in range(depth):
            attn = Attention(transformer_dim, num_heads, drop)
            block = Block(transformer_dim, attn, Mlp(transformer_dim, transformer_dim * 2, act=nn.SiLU), eps=1e-5)
            block.ls2 = nn.Dropout(drop)  # after the MLP, not inside
            self.transformer.append(block)
        self.norm = nn.LayerNorm(transformer_dim, eps=1e-5)
        self.conv_proj = ConvNormAct(transformer_dim, dim, kernel_size=1)
        self.conv_fusion = ConvNormAct(dim * 2, dim, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_fusion(
            torch.cat([x, self.conv_proj(self.attend_globally(self.conv_1x1(self.conv_kxk(x))))], 1)
        )

    def attend_globally(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        height, width = x.shape[-2:]
        even = height + height % 2, width + width % 2
        if even != (height, width):
            x = F.interpolate(x, size=even, mode="bilinear")
        for block in self.transformer:
            place(block.get_submodule("attn"), lambda: places(*even))
        x = fold(self.norm(self.transformer(unfold(x))), *even)
        return x if even == (height, width) else F.interpolate(x, size=(height, width), mode="bilinear")


class Model(Classifier):
    """MobileViT: images (B, C, H, W) in [0, 1], of any sides, -> logits (B, K)."""

    blocks_are = r"stages\.\d+\.\d+"
    head_name = "head.fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        widths, expansion = config.channels, config.expansion
        self.stem = ConvNormAct(config.in_chans, 16, kernel_size=3, stride=2)
        self.stages = nn.Sequential(
            nn.Sequential(InvertedResidual(16, widths[0], expansion, stride=1)),
            nn.Sequential(
                InvertedResidual(widths[0], widths[1], expansion, stride=2),
                InvertedResidual(widths[1], widths[1], expansion, stride=1),
                InvertedResidual(widths[1], widths[1], expansion, stride=1),
            ),
        )
        transformers = zip(config.transformer_dims, config.transformer_depths, strict=True)
        for dim, out, (transformer_dim, depth) in zip(widths[1:4], widths[2:5], transformers, strict=True):
            down = InvertedResidual(dim, out, expansion, stride=2)
            self.stages.append(nn.Sequential(down, MobileViTBlock(out, transformer_dim, depth, drop=config.drop_rate)))
        self.num_features = min(widths[4] * 4, 960)
        self.final_conv = ConvNormAct(widths[4], self.num_features, kernel_size=1)
        self.head = nn.Sequential()
        self.head.add_module("drop", nn.Dropout(config.drop_rate))
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """The authors': convolutions Kaiming-normal by their fan-out, linear layers truncated normal, biases 0."""
        init_truncated_normal(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, H/s, W/s) at strides s = 4, 8, 16 and 32, odd sides rounded up."""
        maps = [self.stages[0](self.stem(images))]
        for stage in self.stages[1:]:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map, expanded, (B, 4 D, H/32, W/32)."""
        return self.final_conv(self.pyramid(images)[-1])

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, 4 D)."""
        return self.head.get_submodule("drop")(features.mean((-2, -1)))
