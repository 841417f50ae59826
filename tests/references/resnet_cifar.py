"""Section 4.2 written out in float64, with the shortcut that has no parameters (option A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references import Reference
from references.plain_resnet import Plain


class Padded(Plain):
    """Where a block strides, its shortcut takes every second position and adds channels of zeros."""

    def shortcut(self, _name: str, x: Tensor, stride: int) -> Tensor:
        if stride == 1:
            return x
        return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    config, training = model.config, model.training

    def logits(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        net = Padded(parameters, training)

        def stem(x: Tensor) -> Tensor:
            return net.norm("bn1", net.conv("conv1", x)).relu()

        def block(name: str, x: Tensor, stride: int, _stage: int, _index: int) -> Tensor:
            return net.basic(name, x, stride)

        return net.logits(images, (config.depth,) * 3, block, stem)

    return logits
