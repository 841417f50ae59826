"""The paper's equations query by query and key by key, in float64: no code was released, no library has the layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference
from references.plain_resnet import Plain, inside, picture, positions


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    config, training = model.config, model.training
    reach = config.kernel_size // 2

    def logits(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        net = Plain(parameters, training)

        def block(name: str, x: Tensor, stride: int, _stage: int, _index: int) -> Tensor:
            return net.bottleneck(name, x, stride, lambda inner, y: local(net, inner, y, stride))

        return net.logits(images, config.depths, block, (lambda x: stem(net, x)) if config.attention_stem else None)

    def local(net: Plain, name: str, x: Tensor, stride: int) -> Tensor:
        """Equations 2 and 3; outside the map, key and value are 0."""
        grid = x.shape[-2:]
        q, k, v = (part.unflatten(1, (config.num_heads, -1)) for part in net.conv(f"{name}.qkv", x).chunk(3, dim=1))
        zero = torch.zeros_like(q[..., 0, 0])
        rows, columns = net[f"{name}.rel_h"], net[f"{name}.rel_w"]
        attended = []
        for i, j in positions(grid):
            similar, values = [], []
            for a in range(i - reach, i + reach + 1):
                for b in range(j - reach, j + reach + 1):
                    key, value = (k[..., a, b], v[..., a, b]) if inside(a, b, grid) else (zero, zero)
                    offset = torch.cat([rows[a - i + reach], columns[b - j + reach]])
                    similar.append((q[..., i, j] * key).sum(-1) + (q[..., i, j] * offset).sum(-1))
                    values.append(value)
            attended.append(mean(similar, values).flatten(1))
        y = picture(attended, grid)
        return F.avg_pool2d(y, 2, ceil_mode=True) if stride == 2 else y

    return logits


def mean(similar: list[Tensor], values: list[Tensor]) -> Tensor:
    """One number (B, h) and one vector (B, h, d) for each key -> the mean of the vectors by the numbers' softmax."""
    weights = torch.stack(similar, dim=-1)
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhm,mbhd->bhd", weights / weights.sum(-1, keepdim=True), torch.stack(values))


def stem(net: Plain, images: Tensor, side: int = 4, heads: int = 4) -> Tensor:
    """Attention of the pixels in a window, whose values are made by the matrix of their place there."""
    q, k = (
        torch.einsum("dc,bcyx->bdyx", matrix, images).unflatten(1, (heads, -1))
        for matrix in net["conv1.qk.weight"].chunk(2)
    )
    v = torch.zeros_like(q)
    for a, b in positions((side, side)):
        says = [(net["conv1.row"][a] + net["conv1.column"][b]) @ mixture for mixture in net["conv1.mixture"]]
        shares = torch.stack(says).exp() / torch.stack(says).exp().sum()
        for share, matrix in zip(shares, net["conv1.v"], strict=True):
            value = torch.einsum("dc,bcyx->bdyx", share * matrix, images[..., a::side, b::side])
            v[..., a::side, b::side] += value.unflatten(1, (heads, -1))
    attended = []
    for i, j in positions(images.shape[-2:]):
        window = slice(i // side * side, i // side * side + side), slice(j // side * side, j // side * side + side)
        similar = torch.einsum("bhd,bhdyx->bhyx", q[..., i, j], k[..., *window]).exp()
        y = torch.einsum("bhyx,bhdyx->bhd", similar, v[..., *window]) / similar.sum((2, 3))[..., None]
        attended.append(y.flatten(1))
    return F.max_pool2d(net.norm("bn1", picture(attended, images.shape[-2:])), side)
