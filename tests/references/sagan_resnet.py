"""Equations 1 to 3 of SAGAN query by query, in float64, with the singular value of its authors' one step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference
from references.plain_resnet import Plain, picture, positions


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    config, training = model.config, model.training

    def logits(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        net = Plain(parameters, training)

        def block(name: str, x: Tensor, stride: int, stage: int, index: int) -> Tensor:
            x = net.bottleneck(name, x, stride)
            last = index == config.depths[stage] - 1
            return attended(net, f"{name}.attn", x) if stage == config.attention_stage and last else x

        def attended(net: Plain, name: str, x: Tensor) -> Tensor:
            theta, phi, g = (project(net, f"{name}.{part}", x) for part in ("theta", "phi", "g"))
            if config.pool:
                phi, g = F.max_pool2d(phi, 2), F.max_pool2d(g, 2)
            columns = []
            for row, column in positions(x.shape[-2:]):
                similar = torch.einsum("bd,bdm->bm", theta[..., row, column], phi.flatten(2)).exp()
                columns.append(torch.einsum("bm,bem->be", similar / similar.sum(1, keepdim=True), g.flatten(2)))
            y = picture(columns, x.shape[-2:])
            if config.out_proj:
                y = project(net, f"{name}.attn", y)
            return net[f"{name}.gamma"] * y + x

        return net.logits(images, config.depths, block)

    return logits


def project(net: Plain, name: str, x: Tensor) -> Tensor:
    """A 1 x 1 convolution; where a vector u is kept, its matrix divided by u' W v after one power iteration."""
    matrix, bias = net[f"{name}.weight"][..., 0, 0], 0.0
    if f"{name}.u" in net:
        v = torch.einsum("o,oi->i", net[f"{name}.u"], matrix)
        v = v / v.square().sum().sqrt()
        u = torch.einsum("oi,i->o", matrix, v)
        matrix = matrix / u.square().sum().sqrt()  # u' W v, since u is W v over its length
    else:
        bias = net[f"{name}.bias"][:, None, None]
    return torch.einsum("oi,bihw->bohw", matrix, x) + bias
