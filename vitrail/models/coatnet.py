"""CoAtNet: Marrying Convolution and Attention for All Data Sizes. Dai, Liu, Le and Tan, NeurIPS 2021, arXiv 2106.04803.

Idea      a depthwise convolution weighs neighbours by their offset, attention by their content; the sum of both inside
          the softmax does both. Convolve where maps are large, attend where they are small: C-C-T-T.
Differs   from ViT: a stem and two stages of MobileNet's blocks before the transformer; positions are a learned bias of
          every offset and head, over the whole map; no class token.
Shapes    (B,3,224,224) -stem-> (B,64,112,112) -MBConv-> (B,96,56,56) -> (B,192,28,28) -attention-> (B,384,14,14)
          -> (B,768,7,7) -mean-> (B,768) -> (B,K)
Lecture   hybrids of convolution and attention

There is no code of the authors. This file computes what timm does, the reference that others measure against. It
departs from the paper's text: maps are halved by averages, not maxima, and in MBConv by the depthwise convolution, not
the first 1 x 1; a hidden layer with tanh (`pre_logits`) stands before the last. `coatnet_paper.py` is the paper's form,
`coatnet_rw.py` timm's own, with weights. Heads are 32 wide. The bias is learned for one grid, so the image size is
fixed when the model is built.

    variant        params   FLOPs   top-1     as the paper prints it: ImageNet-1k, 224 x 224; params and FLOPs are
    coatnet_0_224   25.0M   4.55G    81.6     counted (the paper: 25M, 4.2G; 42M, 8.4G; 75M, 15.7G; 168M, 34.7G;
    coatnet_1_224   42.2M   8.64G    83.3     275M; 688M)
    coatnet_2_224   74.7M   16.4G    84.1
    coatnet_3_224  167.0M   36.5G    84.5
    coatnet_4_224  275.4M   62.3G       -
    coatnet_5_224  687.5M  145.3G       -
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import attend, global_places, place
from vitrail.layers.blocks import DropPath, drop_path_rates, init_truncated_normal
from vitrail.layers.position import relative_index
from vitrail.layers.tokens import divided, only_size
from vitrail.models.botnet import SqueezeExcite
from vitrail.models.protocol import Classifier

HEAD = 32
"""Width of a head."""


@dataclass(frozen=True)
class Config:
    """Widths and blocks of the four stages after the stem."""

    embed_dim: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    stem_width: int
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "coatnet_0_224": Config((96, 192, 384, 768), (2, 3, 5, 2), 64),
    "coatnet_1_224": Config((96, 192, 384, 768), (2, 6, 14, 2), 64),
    "coatnet_2_224": Config((128, 256, 512, 1024), (2, 6, 14, 2), 128),
    "coatnet_3_224": Config((192, 384, 768, 1536), (2, 6, 14, 2), 192),
    "coatnet_4_224": Config((192, 384, 768, 1536), (2, 12, 28, 2), 192),
    "coatnet_5_224": Config((256, 512, 1280, 2048), (2, 12, 28, 2), 192),
}


class Stem(nn.Module):
    """S0: two 3 x 3 convolutions, the first with stride 2; the next block begins with a norm: (B, C, H, W) ->
    (B, D, H/2, W/2)."""

    def __init__(self, in_chans: int, widths: tuple[int, int], act: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.act = act
        self.conv2 = nn.Conv2d(*widths, kernel_size=3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv2(self.act(self.norm1(self.conv1(images))))


class Downsample(nn.Sequential):
    """The shortcut of a stage's first block, pooled and projected: (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, dim: int, out: int, pool: nn.Module, bias: bool = True):
        super().__init__()
        self.pool = pool
        self.expand = nn.Conv2d(dim, out, kernel_size=1, bias=bias) if dim != out else nn.Identity()


class MBConv(nn.Module):
    """S1 and S2: expand, filter each channel, weigh the channels, project; norms before: (B, C, H, W) -> (B, D, H, W).

    With `pool`, the shortcut's, and `strides`, of the first two convolutions: -> (B, D, H/2, W/2).
    """

    def __init__(
        self, dim: int, out: int, drop_path: float, pool: nn.Module | None = None, strides: tuple[int, int] = (1, 1)
    ):
        super().__init__()
        hidden = out * 4
        self.shortcut = Downsample(dim, out, pool) if pool else nn.Identity()
        self.pre_norm = nn.BatchNorm2d(dim)
        self.conv1_1x1 = nn.Conv2d(dim, hidden, kernel_size=1, stride=strides[0], bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=strides[1], padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.se = SqueezeExcite(hidden, out // 4, nn.SiLU)
        self.conv3_1x1 = nn.Conv2d(hidden, out, kernel_size=1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        y = F.gelu(self.norm2(self.conv2_kxk(y)))
        return self.drop_path(self.conv3_1x1(self.se(y))) + self.shortcut(x)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map: (B, D, H, W) -> the same, in the memory order of channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RelativeBias(nn.Module):
    """w of equation 3: what an offset of two positions of the grid adds to the logits, by head: -> (h, N, N)."""

    def __init__(self, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(*grid), persistent=False)

    def forward(self) -> Tensor:
        index = self.get_buffer("relative_position_index")
        return self.relative_position_bias_table.T.index_select(1, index.flatten()).unflatten(1, index.shape)


class Attention(nn.Module):
    """Relative attention over all positions of a map: (B, C, H, W) -> (B, D, H, W), `width` wide in between.

    The channels of `qkv` are, head by head, those of its query, its key and its value. `rel_pos()` is the bias.
    """

    def __init__(self, dim: int, width: int, out: int, rel_pos: nn.Module):
        super().__init__()
        if width % HEAD:
            raise UserError(f"attention of width {width} has no whole number of heads of {HEAD}; change embed_dim")
        self.num_heads = width // HEAD
        self.qkv = nn.Conv2d(dim, width * 3, kernel_size=1)
        self.rel_pos = rel_pos
        self.proj = nn.Conv2d(width, out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[-2], x.shape[-1]
        place(self, lambda: global_places(grid, grid))
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(-2, -1).chunk(3, dim=-1)
        x = attend(q, k, v, site=self, bias=self.rel_pos())  # (B, h, N, d)
        return self.proj(x.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, grid))


class ConvMlp(nn.Module):
    """ViT's MLP on the positions of a map: (B, D, H, W) -> the same."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TransformerBlock(nn.Module):
    """S3 and S4: ViT's block on a map, (B, D, H, W) -> the same; the paper that scales its branches replaces `ls`."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float):
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        self.norm1: nn.Module = LayerNorm2d(dim, eps=1e-6)
        self.attn = attn
        self.ls1: nn.Module = nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, dim * 4)
        self.ls2: nn.Module = nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # A sum has the memory order of its first term, here channels last, which spares the norms a copy.
        x = self.drop_path1(self.ls1(self.attn(self.norm1(x)))) + self.shortcut(x)
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + x


class PoolingTransformerBlock(TransformerBlock):
    """The first of a stage, both branches pooled: (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, dim: int, out: int, attn: nn.Module, drop_path: float, pool: nn.Module, bias: bool = True):
        super().__init__(out, attn, drop_path)
        self.shortcut = Downsample(dim, out, pool, bias)
        self.norm1 = nn.Sequential(OrderedDict(norm=LayerNorm2d(dim, eps=1e-6), down=pool))


class Head(nn.Module):
    """What follows the mean over positions: (B, D) -> (B, K)."""

    fc: nn.Module

    def __init__(self, dim: int):
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(dim, eps=1e-6)
        self.pre_logits: nn.Module = nn.Sequential(OrderedDict(fc=nn.Linear(dim, dim), act=nn.Tanh()))


class Model(Classifier):
    """CoAtNet: images (B, C, img_size, img_size), normalised, -> logits (B, K)."""

    blocks_are = r"stages\.\d+\.blocks\.\d+"
    head_name = "head.fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        divided(config.img_size, config.img_size, 32, "coarsest stride")
        self.stem = self.make_stem()
        self.stages = nn.Sequential()
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        dim = config.stem_width
        for stage, (out, depth) in enumerate(zip(config.embed_dim, config.depths, strict=True)):
            blocks = nn.Sequential()
            make = self.make_conv_block if stage < 2 else self.make_attention_block
            for index in range(depth):
                blocks.append(make(stage, dim, out, index == 0, next(rates)))
                dim = out
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
        self.num_features = dim
        self.make_head()
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def make_stem(self) -> nn.Module:
        """S0: (B, C, H, W) -> (B, stem_width, H/2, W/2)."""
        return Stem(self.config.in_chans, (self.config.stem_width, self.config.stem_width), nn.GELU())

    def make_conv_block(self, _stage: int, dim: int, out: int, first: bool, drop_path: float) -> nn.Module:
        """A block of S1 or S2; the `first` of a stage halves the map."""
        return MBConv(dim, out, drop_path, nn.AvgPool2d(2), (1, 2)) if first else MBConv(dim, out, drop_path)

    def make_attention_block(self, stage: int, dim: int, out: int, first: bool, drop_path: float) -> nn.Module:
        """A block of S3 or S4; the `first` of a stage halves the map."""
        attn = Attention(dim, out, out, RelativeBias(out // HEAD, self.grid_of(stage)))
        return self.pooling(dim, out, attn, drop_path) if first else TransformerBlock(out, attn, drop_path)

    def pooling(self, dim: int, out: int, attn: nn.Module, drop_path: float) -> nn.Module:
        """The first block of S3 or S4."""
        return PoolingTransformerBlock(dim, out, attn, drop_path, nn.AvgPool2d(2))

    def make_head(self) -> None:
        """What the mean goes through before the last layer."""
        self.head = Head(self.num_features)

    def grid_of(self, stage: int) -> tuple[int, int]:
        """The side of a stage's maps."""
        side = self.config.img_size // 4 // 2**stage
        return side, side

    def init_weights(self) -> None:
        """timm's: convolutions normal by their fan-out, those of the transformer Xavier-uniform, biases 0."""
        init_truncated_normal(self.head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=(2 * module.groups / module.weight[:, 0].numel()) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.modules():
            if isinstance(block, TransformerBlock):
                for module in block.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.xavier_uniform_(module.weight)

    def no_weight_decay(self) -> set[str]:
        """The biases of offsets."""
        return {name for name, _ in self.named_parameters() if ".rel_pos." in name}

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, H/s, W/s) at strides s = 4, 8, 16 and 32."""
        height, width = images.shape[-2:]
        only_size(height, width, self.config.img_size, "its biases are learned for the offsets on that grid")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map (B, D, H/32, W/32)."""
        return self.pyramid(images)[-1]

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, normalised, through the hidden layer: (B, D)."""
        return self.head.pre_logits(self.head.norm(features.mean((-2, -1))))
