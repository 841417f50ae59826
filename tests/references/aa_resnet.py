"""Section 3 of the paper query by query, in float64, the vector of every offset looked up: no code was released."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference
from references.botnet import resized
from references.plain_resnet import Plain, picture, positions


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Tables of offsets are those of the images to come, by an interpolation of their own."""
    config, training = model.config, model.training

    def logits(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        net = Plain(parameters, training)

        def block(name: str, x: Tensor, stride: int, stage: int, _index: int) -> Tensor:
            kind = net.basic if config.basic else net.bottleneck
            return kind(name, x, stride, (lambda inner, y: augmented(net, inner, y, stride)) if stage else None)

        return net.logits(images, config.depths, block)

    def augmented(net: Plain, name: str, x: Tensor, stride: int) -> Tensor:
        qkv = F.conv2d(x, net[f"{name}.qkv.weight"], stride=stride)
        d_v = len(net[f"{name}.proj.weight"])
        d_k = (qkv.shape[1] - d_v) // 2
        q, k, v = (part.unflatten(1, (config.num_heads, -1)) for part in qkv.split([d_k, d_k, d_v], dim=1))
        grid = qkv.shape[-2:]
        rows, columns = (
            resized(net[f"{name}.pos_embed.{side}_rel"], 2 * length - 1)
            for side, length in zip(("height", "width"), grid, strict=True)
        )
        keys = torch.tensor(positions(grid))
        attended = []
        for y, x0 in positions(grid):
            query = q[..., y, x0] / (d_k // config.num_heads) ** 0.5  # (B, h, d)
            offsets = rows[keys[:, 0] - y + grid[0] - 1] + columns[keys[:, 1] - x0 + grid[1] - 1]  # (N, d)
            similar = torch.einsum("bhd,bhdn->bhn", query, k.flatten(3)) + torch.einsum("bhd,nd->bhn", query, offsets)
            weights = (similar - similar.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
            attended.append(torch.einsum("bhn,bhen->bhe", weights, v.flatten(3)).flatten(1))
        y = torch.einsum("oi,bihw->bohw", net[f"{name}.proj.weight"][..., 0, 0], picture(attended, grid))
        if f"{name}.conv.weight" not in net:
            return y
        return torch.cat([net.conv(f"{name}.conv", x, stride), y], dim=1)

    return logits
