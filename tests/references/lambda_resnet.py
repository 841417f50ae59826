"""torchvision's ResNet with timm's LambdaLayer put in by hand; with u > 1, which timm lacks, position by position."""

from __future__ import annotations

import torch
from timm.layers.lambda_layer import LambdaLayer
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from references import Reference, called


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Depths, widths and sizes of the layers as ours."""
    settle(model, "bn3")
    config = model.config
    other = ResNet(Bottleneck, list(config.depths), num_classes=model.num_classes)
    other.conv1 = nn.Conv2d(config.in_chans, 64, 7, stride=2, padding=3, bias=False)
    dim = 64
    for stage, layers in enumerate((other.layer1, other.layer2, other.layer3, other.layer4)):
        width = config.base_width * 2**stage
        for index, block in enumerate(layers):
            stride = 2 if stage and not index else 1
            block.conv1 = nn.Conv2d(dim, width, 1, bias=False)
            block.bn1, block.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            block.conv3, block.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            if index == 0:
                shortcut = nn.Conv2d(dim, 4 * width, 1, stride=stride, bias=False)
                block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))
            block.conv2 = Explicit(width, config) if config.intra_depth > 1 else timms(width, config)
            block.conv2.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
            dim = 4 * width
    other.fc = nn.Linear(dim, model.num_classes)
    return called(other.train(model.training), dict if config.intra_depth > 1 else to_timm)


@torch.no_grad()
def settle(model: nn.Module, last_norm: str) -> None:
    """Make the branches of a random model small beside the shortcuts: a lambda layer multiplies its input by itself,
    and sixteen squares in a row overflow, or amplify the last digit to the first."""
    for name, parameter in model.named_parameters():
        if name.endswith(f"{last_norm}.weight"):
            parameter.mul_(0.1)


def timms(width: int, config: object) -> nn.Module:
    return LambdaLayer(width, num_heads=config.num_heads, dim_head=config.dim_head, r=config.rel_size)


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        name = name.replace("conv_qkv", "qkv").replace("lambda_conv", "conv_lambda")
        renamed[name] = value.permute(0, 1, 3, 4, 2) if name.endswith("conv_lambda.weight") else value
    return renamed


class Explicit(nn.Module):
    """The paper's equations: for each position n, lambda_n = sum over m of (softmax(K)_m + E_nm) V_m, in float64."""

    def __init__(self, dim: int, config: object):
        super().__init__()
        self.h, self.k, self.u, self.r = config.num_heads, config.dim_head, config.intra_depth, config.rel_size
        values = dim // self.h * self.u
        self.conv_qkv = nn.Conv2d(dim, (self.h + self.u) * self.k + values, 1, bias=False)
        self.norm_q, self.norm_v = nn.BatchNorm2d(self.h * self.k), nn.BatchNorm2d(values)
        self.lambda_conv = nn.Conv3d(self.u, self.k, (1, self.r, self.r))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        projected = self.conv_qkv(x)
        q = self.norm_q(projected[:, : self.h * self.k]).double().unflatten(1, (self.h, self.k))
        k = projected[:, self.h * self.k :][:, : self.u * self.k].double().unflatten(1, (self.u, self.k))
        v = self.norm_v(projected[:, (self.h + self.u) * self.k :]).double().unflatten(1, (self.u, -1))
        weights = k.exp() / k.exp().sum((-2, -1), keepdim=True)
        table, bias = self.lambda_conv.weight[:, :, 0].double(), self.lambda_conv.bias.double()
        out = []
        for y in range(height):
            for x0 in range(width):
                near = torch.zeros(self.u, self.k, height, width, dtype=torch.double)
                for b in range(height):
                    for a in range(width):
                        down, across = b - y + self.r // 2, a - x0 + self.r // 2
                        if 0 <= down < self.r and 0 <= across < self.r:
                            near[:, :, b, a] = table[:, :, down, across].t()
                linear = torch.einsum("bukyx,buvyx->bkv", weights + near, v) + bias[:, None]
                out.append(torch.einsum("bhk,bkv->bhv", q[..., y, x0], linear).flatten(1))
        return self.pool(torch.stack(out, -1).unflatten(-1, (height, width)).to(x.dtype))
