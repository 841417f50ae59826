"""Focal attention window by window, from the released description: the ring by rolling the map four times and masking,
the summaries one by one, all in double precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference

P = dict[str, Tensor]


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size: windows and rings are chosen for the map of the stage at `img_size`."""
    config = model.config

    def run(parameters: P, images: Tensor) -> Tensor:
        p = {key: value.double() for key, value in parameters.items()}
        x = embed(images.double(), p, "patch_embed", (4, 2) if config.use_conv_embed else (4, 0))
        for stage, depth in enumerate(config.depths):
            side = config.img_size // 4 // 2**stage
            window, ring = (config.window_size, config.expand_size) if side > config.window_size else (side, 0)
            for i in range(depth):
                prefix = f"layers.{stage}.blocks.{i}."
                x = block(x, p, prefix, config.num_heads[stage], window, ring, config.focal_windows[stage])
            if stage < len(config.depths) - 1:
                stride = (2, 1) if config.use_conv_embed else (2, 0)
                x = embed(x.permute(0, 3, 1, 2), p, f"layers.{stage}.downsample", stride)
        x = norm(x, p, "norm").mean((1, 2))
        return F.linear(x, p["head.weight"], p["head.bias"])

    return run


def norm(x: Tensor, p: P, name: str) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * p[name + ".weight"] + p[name + ".bias"]


def linear(x: Tensor, p: P, name: str) -> Tensor:
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def embed(x: Tensor, p: P, name: str, stride: tuple[int, int]) -> Tensor:
    x = F.conv2d(x, p[name + ".proj.weight"], p[name + ".proj.bias"], stride[0], stride[1])
    return norm(x.permute(0, 2, 3, 1), p, name + ".norm")


def block(x: Tensor, p: P, prefix: str, heads: int, window: int, ring: int, focal: int) -> Tensor:
    high, wide = x.shape[1:3]
    y = F.pad(norm(x, p, prefix + "norm1"), (0, 0, 0, -wide % window, 0, -high % window))
    x = x + attention(y, p, prefix, heads, window, ring, focal)[:, :high, :wide]
    y = linear(norm(x, p, prefix + "norm2"), p, prefix + "mlp.fc1")
    return x + linear(F.gelu(y), p, prefix + "mlp.fc2")


def attention(y: Tensor, p: P, prefix: str, heads: int, window: int, ring: int, focal: int) -> Tensor:
    high, wide = y.shape[1] // window, y.shape[2] // window
    q, k, v = linear(y, p, prefix + "attn.qkv").chunk(3, -1)
    kv = torch.cat([k, v], -1)
    summary = {}
    for row in range(high):
        for column in range(wide):
            cells = cut(y, row, column, window)
            mixed = torch.einsum("bnc,n->bc", cells, p[prefix + "pool_layers.0.weight"][0])
            mixed = mixed + p[prefix + "pool_layers.0.bias"]
            summary[row, column] = linear(mixed, p, prefix + "attn.qkv").chunk(3, -1)
    bias, rolled = near_bias(p, prefix, heads, window, ring), []
    for shift in [(-ring, -ring), (-ring, ring), (ring, -ring), (ring, ring)]:
        rolled.append((torch.roll(kv, shift, (1, 2)), beyond(window, *shift)))
    rows = []
    for row in range(high):
        line = []
        for column in range(wide):
            keys = [cut(kv, row, column, window)]
            keys += [cut(turned, row, column, window)[:, mask] for turned, mask in rolled]
            far, far_bias = [], []
            for i in range(focal):
                for j in range(focal):
                    at = row + i - focal // 2, column + j - focal // 2
                    if at in summary:
                        far.append(torch.cat(summary[at][1:], -1))
                        far_bias.append(offset_bias(p, prefix, window, focal, i, j))
            keys = torch.cat([*keys, torch.stack(far, 1)], 1)
            logits = torch.cat([bias, torch.stack(far_bias, -1)], -1)
            line.append(mix(cut(q, row, column, window), keys, logits, heads).unflatten(1, (window, window)))
        rows.append(torch.cat(line, 2))
    return linear(torch.cat(rows, 1), p, prefix + "attn.proj")


def mix(q: Tensor, kv: Tensor, bias: Tensor, heads: int) -> Tensor:
    k, v = kv.chunk(2, -1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def cut(x: Tensor, row: int, column: int, window: int) -> Tensor:
    """The tokens of one window, (B, N, C)."""
    return x[:, row * window : (row + 1) * window, column * window : (column + 1) * window].flatten(1, 2)


def beyond(window: int, down: int, right: int) -> Tensor:
    """Which cells of a window show, after rolling the map, what lies outside of it."""
    seen = torch.zeros(window, window)
    for row in range(window):
        for column in range(window):
            seen[row, column] = not (0 <= row - down < window and 0 <= column - right < window)
    return seen.flatten().bool()


def near_bias(p: P, prefix: str, heads: int, window: int, ring: int) -> Tensor:
    """Biases of the window's own keys and of the ring's, (h, N, 49 + 132)."""
    table = p[prefix + "attn.relative_position_bias_table"].unflatten(0, (2 * window - 1, 2 * window - 1))
    own = torch.stack(
        [
            table[a // window - b // window + window - 1, a % window - b % window + window - 1]
            for a in range(window**2)
            for b in range(window**2)
        ]
    )
    own = own.T.reshape(heads, window**2, window**2)
    return torch.cat([own, p[prefix + "attn.relative_position_bias_table_to_neighbors"][0]], -1) if ring else own


def offset_bias(p: P, prefix: str, window: int, focal: int, i: int, j: int) -> Tensor:
    """Bias of one summary for every query of the window, (h, N)."""
    side = window + focal - 1
    table = p[prefix + "attn.relative_position_bias_table_to_windows.0"].unflatten(1, (side, side))
    return table[:, focal - 1 - i : side - i, focal - 1 - j : side - j].flatten(1)
