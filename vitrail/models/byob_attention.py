"""Scaling Local Self-Attention for Parameter Efficient Visual Backbones. Vaswani et al., CVPR 2021, arXiv 2103.12731.
With it BoTNet (arXiv 2101.11605) and LambdaNetworks (arXiv 2102.08602), all three as timm built and trained them.

Idea      one ResNet whose blocks take any operator: a convolution, attention over the whole map or in blocks that see
          a halo around them, lambdas (all in `byob_operators.py`).
Differs   from the papers: three small convolutions as stem, few operators and convolutions between them; from
          `botnet.py`: the last stage strides, and the logits of positions are not scaled.
Shapes    (B,3,256,256) -stem-> (B,64,64,64) -> (B,256,64,64) -> (B,512,32,32) -> (B,1024,16,16) -> (B,2048,8,8)
          -mean-> (B,2048) -> (B,K)
Lecture   attention inside convolutional networks

Operators by their names in `blocks`: `bot` (`bot16` with queries of 16 channels), `halo`, `lambda9` and `lambda13` by
the side of their window, `lambda` with a table of all offsets. Where tables of positions fit one map (`bot`, `lambda`),
other sizes need a model built with that img_size.

    variant                   params   FLOPs   top-1     ImageNet-1k weights as timm evaluates them at 256
    botnet26t_256              12.5M   3.29G    79.3
    botnet50ts_256             22.7M   5.50G       -
    sebotnet33ts_256           13.7M   3.85G    81.2
    eca_botnext26ts_256        10.6M   2.44G    79.3
    lambda_resnet26t           11.0M   3.00G    79.1
    lambda_resnet26rpt_256     11.0M   3.14G    79.0
    lambda_resnet50ts          21.5M   5.03G    81.2
    lamhalobotnet50ts_256      22.6M   4.98G    81.6
    halo2botnet50ts_256        22.6M   4.98G    82.1
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitrail.layers.tokens import only_size
from vitrail.models.attention_resnet import Grid
from vitrail.models.botnet import ACTIVATIONS, SqueezeExcite
from vitrail.models.byob_operators import FIXED, OPERATORS
from vitrail.models.protocol import Classifier

Blocks = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Config:
    """`blocks` names the operator of every block, stage by stage; `widths` are those inside, `channels` those outside.

    `attn_layer` weighs the channels of convolutional blocks, whose groups have `group_size` channels; `stem_pool` ends
    the stem with a pooling instead of a stride; `num_features` is the width of a last convolution, 0 for none.
    """

    blocks: Blocks
    channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    act_layer: Literal["relu", "silu"] = "silu"
    attn_layer: Literal["", "se", "eca"] = ""
    group_size: int = 0
    stem_pool: bool = True
    num_features: int = 0
    img_size: int = 256
    in_chans: int = 3
    num_classes: int = 1000


def blocks26(operator: str) -> Blocks:
    """26 layers: the operator in one block of stage 3 and both of stage 4."""
    return ("conv", "conv"), ("conv", "conv"), ("conv", operator), (operator, operator)


def blocks50(second: tuple[str, ...], third: str, fourth: str) -> Blocks:
    """50 layers: every other block of stages 3 and 4 has the operator."""
    return ("conv",) * 3, second, ("conv", third) * 3, ("conv", fourth, "conv")


LATE_BOT, LATE_LAMBDA = ("conv", "conv", "conv", "bot"), ("conv", "conv", "conv", "lambda9")
SE33 = ("conv", "conv"), ("conv", "conv", "bot"), ("conv", "conv", "bot"), ("bot", "bot")

VARIANTS = {
    "botnet26t_256": Config(blocks26("bot"), act_layer="relu"),
    "botnet50ts_256": Config(blocks50(LATE_BOT, "bot", "bot")),
    "sebotnet33ts_256": Config(SE33, (256, 512, 1024, 1536), attn_layer="se", stem_pool=False, num_features=1280),
    "eca_botnext26ts_256": Config(blocks26("bot16"), attn_layer="eca", group_size=16),
    "lambda_resnet26t": Config(blocks26("lambda9"), act_layer="relu"),
    "lambda_resnet26rpt_256": Config(blocks26("lambda"), act_layer="relu"),
    "lambda_resnet50ts": Config(blocks50(LATE_LAMBDA, "lambda9", "lambda9")),
    "lamhalobotnet50ts_256": Config(blocks50(("conv", "lambda13") * 2, "halo", "bot"), stem_pool=False),
    "halo2botnet50ts_256": Config(blocks50(("conv", "halo") * 2, "halo", "bot"), stem_pool=False),
}


class ConvNormAct(nn.Module):
    """Convolution that keeps the size up to its stride, norm, activation."""

    def __init__(self, dim: int, out: int, kernel: int, act: nn.Module, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class ChannelWeights(nn.Module):
    """ECA (Wang et al., CVPR 2020, arXiv 1910.03151): channels weighed by a convolution across their means."""

    def __init__(self, dim: int):
        super().__init__()
        side = int(abs(math.log2(dim) + 1) / 2)
        side = max(side if side % 2 else side + 1, 3)
        self.conv = nn.Conv1d(1, 1, side, padding=side // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]


class Block(nn.Module, ABC):
    """1 x 1, operator, 1 x 1, and a shortcut: (B, dim, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, dim: int, stage: int, stride: int, config: Config):
        super().__init__()
        self.act = ACTIVATIONS[config.act_layer]()
        width, out = config.widths[stage], config.channels[stage]
        self.shortcut: nn.Module = nn.Identity()
        if dim != out or stride != 1:
            self.shortcut = ConvNormAct(dim, out, 1, nn.Identity(), stride)
        self.conv1_1x1 = ConvNormAct(dim, width, 1, self.act)
        self.conv3_1x1 = ConvNormAct(width, out, 1, nn.Identity())

    @abstractmethod
    def inner(self, x: Tensor) -> Tensor:
        """What stands between the two 1 x 1 convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv3_1x1(self.inner(self.conv1_1x1(x))) + self.shortcut(x))


class ConvBlock(Block):
    """With a 3 x 3 convolution, whose channels may be weighed."""

    def __init__(self, dim: int, stage: int, stride: int, config: Config):
        super().__init__(dim, stage, stride, config)
        width = config.widths[stage]
        groups = width // config.group_size if config.group_size else 1
        self.conv2_kxk = ConvNormAct(width, width, 3, self.act, stride, groups)
        self.attn: nn.Module = nn.Identity()
        if config.attn_layer == "se":
            self.attn = SqueezeExcite(width, max(8, (width // 16 + 4) // 8 * 8), nn.ReLU)
        elif config.attn_layer == "eca":
            self.attn = ChannelWeights(width)

    def inner(self, x: Tensor) -> Tensor:
        return self.attn(self.conv2_kxk(x))


class OperatorBlock(Block):
    """With one of OPERATORS, a norm and an activation."""

    def __init__(self, dim: int, stage: int, stride: int, config: Config, operator: nn.Module):
        super().__init__(dim, stage, stride, config)
        self.self_attn = operator
        self.post_attn = nn.BatchNorm2d(config.widths[stage])

    def inner(self, x: Tensor) -> Tensor:
        return self.act(self.post_attn(self.self_attn(x)))


class Model(Classifier):
    """timm's ByobNet with attention: images (B, C, H, W), normalised, -> logits (B, K).

    Raises UserError for images of another size than `config.img_size` where tables of positions fit one map.
    """

    blocks_are = r"stages\.\d+\.\d+"
    head_name = "head.fc"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        act = ACTIVATIONS[config.act_layer]()
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", ConvNormAct(config.in_chans, 24, 3, act, 2))
        self.stem.add_module("conv2", ConvNormAct(24, 32, 3, act))
        self.stem.add_module("conv3", ConvNormAct(32, 64, 3, act, 1 if config.stem_pool else 2))
        if config.stem_pool:
            self.stem.add_module("pool", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        side, dim = -(-config.img_size // 4), 64
        self.stages = nn.ModuleList()
        for stage, names in enumerate(config.blocks):
            blocks = nn.Sequential()
            for index, name in enumerate(names):
                stride = 2 if stage and not index else 1
                blocks.append(self.make_block(name, dim, stage, stride, (side, side)))
                side, dim = -(-side // stride), config.channels[stage]
            self.stages.append(blocks)
        self.num_features = config.num_features or dim
        self.final_conv: nn.Module = nn.Identity()
        if config.num_features:
            self.final_conv = ConvNormAct(dim, config.num_features, 1, act)
        self.head = nn.Module()
        self.reset_classifier(config.num_classes)
        self.init_weights()

    def make_block(self, name: str, dim: int, stage: int, stride: int, grid: Grid) -> nn.Module:
        """A block with the operator `name` for maps of `grid`."""
        if name == "conv":
            return ConvBlock(dim, stage, stride, self.config)
        operator = OPERATORS[name](self.config.widths[stage], stride, grid)
        return OperatorBlock(dim, stage, stride, self.config, operator)

    def init_weights(self) -> None:
        """timm's: convolutions by their fan-out, projections to queries, keys and values by their fan-in, the last
        norm of each block 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name.rpartition(".")[2] in ("qkv", "q", "kv"):
                nn.init.trunc_normal_(module.weight, std=module.in_channels**-0.5)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Block):
                nn.init.zeros_(module.conv3_1x1.bn.weight)

    def init_head(self, head: nn.Module) -> None:
        """A narrow normal, as timm's."""
        for name, parameter in head.named_parameters():
            nn.init.normal_(parameter, std=0.01 if name == "weight" else 0.0)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, D, H/s, W/s) at strides s = 4, 8, 16 and 32."""
        if any(name in FIXED for names in self.config.blocks for name in names):
            height, width = images.shape[-2:]
            only_size(height, width, self.config.img_size, "its tables of positions fit one map")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map (B, D, H', W')."""
        return self.final_conv(self.pyramid(images)[-1])

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean((-2, -1))

    def no_weight_decay(self) -> set[str]:
        """The tables of offsets."""
        return {name for name, _ in self.named_parameters() if name.endswith(("_rel", "pos_emb"))}
