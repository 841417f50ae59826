"""CoAtNet from the paper's text, slowly: every convolution a sum over its offsets, attention query by query with the
bias looked up offset by offset, all in double precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from references import Reference

P = dict[str, Tensor]


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config

    def run(parameters: P, images: Tensor) -> Tensor:
        p = {key: value.double() for key, value in parameters.items()}
        x = convolve(images.double(), p, "stem.conv1", stride=2)
        x = convolve(gelu(batch_norm(x, p, "stem.norm1", model.training)), p, "stem.conv2")
        for stage, depth in enumerate(config.depths):
            for index in range(depth):
                name = f"stages.{stage}.blocks.{index}."
                if stage < 2:
                    x = mbconv(x, p, name, index == 0, model.training)
                else:
                    x = transformer(x, p, name, index == 0)
        x = layer_norm(x.mean((2, 3))[:, :, None, None], p, "head.norm")[:, :, 0, 0]
        return x @ p["head.fc.weight"].T + p["head.fc.bias"]

    return run


def mbconv(x: Tensor, p: P, name: str, first: bool, training: bool) -> Tensor:
    y = batch_norm(x, p, name + "pre_norm", training)
    y = convolve(y, p, name + "conv1_1x1", stride=2 if first else 1)
    y = gelu(batch_norm(y, p, name + "norm1", training))
    y = gelu(batch_norm(convolve(y, p, name + "conv2_kxk"), p, name + "norm2", training))
    gate = convolve(y.mean((2, 3), keepdim=True), p, name + "se.fc1")
    gate = convolve(gate / (1 + (-gate).exp()), p, name + "se.fc2")
    y = convolve(y / (1 + (-gate).exp()), p, name + "conv3_1x1")
    return y + (shortcut(x, p, name) if first else x)


def transformer(x: Tensor, p: P, name: str, first: bool) -> Tensor:
    y = layer_norm(x, p, name + ("norm1.norm" if first else "norm1"))
    y = attention(maxima(y) if first else y, p, name + "attn.")
    x = y + (shortcut(x, p, name) if first else x)
    y = convolve(layer_norm(x, p, name + "norm2"), p, name + "mlp.fc1")
    return x + convolve(gelu(y), p, name + "mlp.fc2")


def shortcut(x: Tensor, p: P, name: str) -> Tensor:
    x = maxima(x)
    return convolve(x, p, name + "shortcut.expand") if name + "shortcut.expand.weight" in p else x


def attention(x: Tensor, p: P, name: str) -> Tensor:
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + w_{i - j}) v_j, head by head."""
    height, width = x.shape[2:]
    table = p[name + "rel_pos.relative_position_bias_table"].reshape(2 * height - 1, 2 * width - 1, -1)
    qkv = convolve(x, p, name + "qkv")
    places = [(row, column) for row in range(height) for column in range(width)]
    out = []
    for head in range(qkv.shape[1] // 96):
        q, k, v = (qkv[:, 96 * head + start : 96 * head + start + 32].flatten(2) for start in (0, 32, 64))
        answers = []
        for i, (row, column) in enumerate(places):
            bias = [table[row - down + height - 1, column - across + width - 1, head] for down, across in places]
            logits = (q[:, :, i, None] * k).sum(1) / 32**0.5 + torch.stack(bias)
            weights = (logits - logits.amax(1, keepdim=True)).exp()
            weights = weights / weights.sum(1, keepdim=True)
            answers.append((weights[:, None] * v).sum(2))
        out.append(torch.stack(answers, 2))
    return convolve(torch.cat(out, 1).unflatten(2, (height, width)), p, name + "proj")


def convolve(x: Tensor, p: P, name: str, stride: int = 1) -> Tensor:
    """Shifted pictures, weighed and summed; a kernel of one input channel filters each channel apart."""
    weight = p[name + ".weight"]
    side, (height, width) = weight.shape[-1], x.shape[2:]
    padded = nn.functional.pad(x, [side // 2] * 4)
    y: Tensor | float = 0.0
    for down in range(side):
        for across in range(side):
            part = padded[:, :, down : down + height : stride, across : across + width : stride]
            each = weight[:, :, down, across]
            if weight.shape[1] == 1 and x.shape[1] == len(weight):
                y = y + part * each[:, 0, None, None]
            else:
                y = y + torch.einsum("bchw,dc->bdhw", part, each)
    assert isinstance(y, Tensor)
    return y + p[name + ".bias"][:, None, None] if name + ".bias" in p else y


def maxima(x: Tensor) -> Tensor:
    corners = [x[:, :, down::2, across::2] for down in (0, 1) for across in (0, 1)]
    return torch.stack(corners).amax(0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def batch_norm(x: Tensor, p: P, name: str, training: bool) -> Tensor:
    mean, var = p[name + ".running_mean"], p[name + ".running_var"]
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    return x * p[name + ".weight"][:, None, None] + p[name + ".bias"][:, None, None]


def layer_norm(x: Tensor, p: P, name: str) -> Tensor:
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return x * p[name + ".weight"][:, None, None] + p[name + ".bias"][:, None, None]
