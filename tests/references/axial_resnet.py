"""Axial-ResNet written query by query: every offset looked up on its own. No library has the network."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference
from references.lambda_resnet import settle


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """The equations with our parameters, read by name.

    In training the branches are made small: where rounding differs some ReLU switches, and with it the gradient of all
    that lies before. (In float64 the gradients of a model as it is agree to 1e-13.)
    """
    heads, training = model.config.num_heads, model.training
    if training:
        settle(model, "bn2")
    return lambda parameters, images: network(parameters, images, heads, training)


def network(p: dict[str, Tensor], x: Tensor, heads: int, training: bool) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = p[f"{name}.running_mean"].clone(), p[f"{name}.running_var"].clone()
        return F.batch_norm(x, mean, var, p[f"{name}.weight"], p[f"{name}.bias"], training)

    x = F.relu(norm(F.conv2d(x, p["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for block in dict.fromkeys(found[0] for name in p if (found := re.match(r"layer\d\.\d+", name))):
        stride = 2 if block in ("layer2.0", "layer3.0", "layer4.0") else 1
        y = F.relu(norm(F.conv2d(x, p[f"{block}.conv_down.weight"]), f"{block}.bn1"))
        y = axis(y.permute(0, 3, 2, 1), p, f"{block}.hight_block", norm, heads).permute(0, 3, 2, 1)
        y = axis(y.permute(0, 2, 3, 1), p, f"{block}.width_block", norm, heads).permute(0, 3, 1, 2)
        y = F.relu(F.avg_pool2d(y, stride))
        y = norm(F.conv2d(y, p[f"{block}.conv_up.weight"]), f"{block}.bn2")
        if f"{block}.downsample.0.weight" in p:
            x = norm(F.conv2d(x, p[f"{block}.downsample.0.weight"], stride=stride), f"{block}.downsample.1")
        x = F.relu(x + y)
    return x.mean((2, 3)) @ p["fc.weight"].t() + p["fc.bias"]


def axis(x: Tensor, p: dict[str, Tensor], name: str, norm, heads: int) -> Tensor:
    """Lines of positions (B, G, L, D) -> the same."""
    lines, length, dim = x.shape[:2], x.shape[2], x.shape[3]
    half = dim // heads // 2
    qkv = x.flatten(0, 1) @ p[f"{name}.qkv_transform.weight"][:, :, 0].t()
    qkv = norm(qkv.transpose(1, 2), f"{name}.bn_qkv").reshape(-1, heads, 4 * half, length)
    q, k, v = qkv[:, :, :half], qkv[:, :, half : 2 * half], qkv[:, :, 2 * half :]
    table = p[f"{name}.relative"]

    def offset(query: int, key: int) -> Tensor:
        return table[:, query - key + length - 1]

    terms = []
    for i in range(length):
        r_q = torch.stack([offset(i, j)[:half] for j in range(length)], 1)  # (d/2, L): of query i with key j
        r_k = torch.stack([offset(j, i)[half : 2 * half] for j in range(length)], 1)
        query = q[..., i, None]
        terms.append(torch.cat([(query * k).sum(2), (query * r_q).sum(2), (k * r_k).sum(2)], 1))
    terms = norm(torch.stack(terms, 2), f"{name}.bn_similarity")  # (B * G, 3 h, L, L)
    logits = terms[:, :heads] + terms[:, heads : 2 * heads] + terms[:, 2 * heads :]
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    content, position = [], []
    for i in range(length):
        r_v = torch.stack([offset(i, j)[2 * half :] for j in range(length)], 1)
        content.append((weights[:, :, i, None] * v).sum(-1).flatten(1))
        position.append((weights[:, :, i, None] * r_v).sum(-1).flatten(1))
    both = torch.stack([torch.stack(content, 2), torch.stack(position, 2)], 2).flatten(1, 2)  # channel by channel
    both = norm(both, f"{name}.bn_output")
    return (both[:, 0::2] + both[:, 1::2]).transpose(1, 2).unflatten(0, lines)
