"""torchvision's ResNet with timm's BottleneckAttn and SEModule put in by hand; no library has the paper's BoTNet."""

from __future__ import annotations

import re

import numpy as np
import torch
from timm.layers import SEModule
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from references import Reference, called


def build(model: nn.Module, _name: str, size: tuple[int, int]) -> Reference:
    """The tables of offsets are built for the images to come, by their own interpolation."""
    config = model.config
    act = nn.SiLU if config.act_layer == "silu" else nn.ReLU
    other = ResNet(Bottleneck, list(config.depths), num_classes=model.num_classes)
    other.conv1 = nn.Conv2d(config.in_chans, 64, 7, stride=2, padding=3, bias=False)
    other.relu = act()
    grid = size[0] // 16, size[1] // 16
    for stage in (other.layer1, other.layer2, other.layer3, other.layer4):
        for block in stage:
            block.relu = act()
            if stage is not other.layer4 and config.se_ratio:
                channels = block.conv3.out_channels
                squeeze = SEModule(channels, rd_channels=int(channels * config.se_ratio), act_layer=act)
                block.bn3 = nn.Sequential(block.bn3, squeeze)
    for index, block in enumerate(other.layer4):
        stride = config.last_stride if index == 0 else 1
        block.conv2 = BottleneckAttn(512, feat_size=grid, stride=stride, scale_pos_embed=True)
        grid = grid[0] // stride, grid[1] // stride
    other.layer4[0].downsample[0].stride = (config.last_stride,) * 2
    other.layer4[0].downsample.append(act())
    other.train(model.training)
    shapes = {name: value.shape for name, value in other.state_dict().items()}

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for name, value in state.items():
            if config.se_ratio:
                name = re.sub(r"(layer[123]\.\d+)\.bn3\.", r"\1.bn3.0.", name)
                name = re.sub(r"(layer[123]\.\d+)\.se\.", r"\1.bn3.1.", name)
            renamed[name] = resized(value, shapes[name][0]) if name.endswith("_rel") else value
        return renamed

    return called(other, rename)


def resized(table: Tensor, length: int) -> Tensor:
    """Linear between the ends: each new row is a mean of two old ones."""
    if len(table) == length:
        return table
    where = np.linspace(0, len(table) - 1, length)
    below = np.minimum(where.astype(int), len(table) - 2)
    share = torch.tensor(where - below, dtype=table.dtype)[:, None]
    return table[below] * (1 - share) + table[below + 1] * share
