"""Section 3 of the paper query by query, in float64: no installable library has these blocks in these places."""

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
            return nonlocal_block(net, f"{name}.attn", x) if index in config.nonlocal_after[stage] else x

        def nonlocal_block(net: Plain, name: str, x: Tensor) -> Tensor:
            pooled = F.max_pool2d(x, 2)
            values = net.conv(f"{name}.g", pooled).flatten(2)  # (B, e, M)
            pair = PAIRWISE[config.pairwise]
            columns = [
                torch.einsum("bm,bem->be", pair(net, name, x[..., row, column], pooled), values)
                for row, column in positions(x.shape[-2:])
            ]
            return x + net.norm(f"{name}.bn", net.conv(f"{name}.out", picture(columns, x.shape[-2:])))

        return net.logits(images, config.depths, block)

    return logits


def gaussian(_net: Plain, _name: str, x: Tensor, keys: Tensor) -> Tensor:
    """Weights (B, M) of one position x (B, C) over the pooled map (B, C, h, w)."""
    products = torch.einsum("bc,bchw->bhw", x, keys).flatten(1)
    products = (products - products.max(1, keepdim=True).values).exp()
    return products / products.sum(1, keepdim=True)


def projected(net: Plain, name: str, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return net.conv(f"{name}.theta", x[..., None, None])[..., 0, 0], net.conv(f"{name}.phi", keys)


def embedded(net: Plain, name: str, x: Tensor, keys: Tensor) -> Tensor:
    theta, phi = projected(net, name, x, keys)
    return gaussian(net, name, theta / theta.shape[1] ** 0.5, phi)


def dot(net: Plain, name: str, x: Tensor, keys: Tensor) -> Tensor:
    theta, phi = projected(net, name, x, keys)
    return torch.einsum("bd,bdm->bm", theta, phi.flatten(2)) / phi.flatten(2).shape[2]


def concat(net: Plain, name: str, x: Tensor, keys: Tensor) -> Tensor:
    theta, phi = projected(net, name, x, keys)
    phi = phi.flatten(2)
    pairs = torch.cat([theta[..., None].expand_as(phi), phi], dim=1)  # (B, 2d, M)
    return torch.einsum("d,bdm->bm", net[f"{name}.w_f"].flatten(), pairs).relu() / phi.shape[2]


PAIRWISE = {"gaussian": gaussian, "embedded": embedded, "dot": dot, "concat": concat}
