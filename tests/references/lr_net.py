"""The authors' kernel position by position, in float64, between convolutions: no network definition was released."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references import Reference
from references.plain_resnet import Plain, picture, positions


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    config, training = model.config, model.training
    reach = config.kernel_size // 2

    def logits(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        net = Plain(parameters, training)

        def stem(x: Tensor) -> Tensor:
            x = net.norm("conv1.1", net.conv("conv1.0", x)).relu()
            x = net.norm("bn1", relation(net, "conv1.3", x, 2)).relu()
            return torch.nn.functional.max_pool2d(x, 3, 2, 1)

        def block(name: str, x: Tensor, stride: int, _stage: int, _index: int) -> Tensor:
            return net.bottleneck(name, x, stride, lambda inner, y: relation(net, inner, y, stride))

        return net.logits(images, config.depths, block, stem)

    def relation(net: Plain, name: str, x: Tensor, stride: int) -> Tensor:
        """-(q - k)^2 + prior inside the map, -100 + prior and value 0 outside; channel c has the weights of c // m."""
        query, key = net.conv(f"{name}.query", x), net.conv(f"{name}.key", x)
        table = prior(net, f"{name}.prior")
        height, width = x.shape[-2:]
        group = torch.arange(x.shape[1]) // config.group_width
        columns = []
        for i, j in positions((-(-height // stride), -(-width // stride))):
            i, j = i * stride, j * stride
            top, bottom = max(i - reach, 0), min(i + reach + 1, height)
            left, right = max(j - reach, 0), min(j + reach + 1, width)
            rows = slice(top - i + reach, bottom - i + reach)
            across = slice(left - j + reach, right - j + reach)
            alike = torch.full((len(x), *table.shape), -100.0, dtype=x.dtype)
            alike[..., rows, across] = -((query[..., i, j, None, None] - key[..., top:bottom, left:right]) ** 2)
            weights = (alike + table).exp()
            weights = weights / weights.sum((2, 3), keepdim=True)
            columns.append((weights[:, group, rows, across] * x[..., top:bottom, left:right]).sum((2, 3)))
        return net.conv(f"{name}.proj", picture(columns, (-(-height // stride), -(-width // stride))))

    def prior(net: Plain, name: str) -> Tensor:
        """A number for each group and offset, (G, k, k)."""
        table = []
        for dy, dx in positions((config.kernel_size, config.kernel_size)):
            offset = torch.tensor([dx - reach, dy - reach], dtype=torch.double)
            hidden = (net[f"{name}.hidden.weight"][..., 0, 0] @ offset + net[f"{name}.hidden.bias"]).relu()
            table.append(net[f"{name}.out.weight"][..., 0, 0] @ hidden)
        return picture([row[None] for row in table], (config.kernel_size, config.kernel_size))[0]

    return logits
