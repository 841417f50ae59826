"""PatchConvNet written out from the paper in double precision: sums over shifted pictures, no module of any library."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import Reference

State = dict[str, Tensor]


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Depth and heads as ours; parameters are read by their names in the release."""
    config = model.config

    def logits(parameters: State, images: Tensor) -> Tensor:
        state = {name: value.double() for name, value in parameters.items()}
        x = stem(state, images.double())
        for index in range(config.depth):
            x = trunk_block(state, f"blocks.{index}.", x)
        patches = x.flatten(2).transpose(1, 2)
        tokens = aggregate(state, "blocks_token_only.0.", patches, config.multiclass)
        tokens = norm(state, "norm", tokens)
        if not config.multiclass:
            return (tokens[:, 0] @ state["head.weight"].T + state["head.bias"]).float()
        answers = [
            tokens[:, k] @ state[f"head.{k}.weight"][0] + state[f"head.{k}.bias"] for k in range(model.num_classes)
        ]
        return torch.stack(answers, dim=1).float()

    return logits


def stem(state: State, x: Tensor) -> Tensor:
    """Four convolutions; the last is followed by nothing."""
    for index in (0, 2, 4, 6):
        weight = state[f"patch_embed.proj.{index}.0.weight"]
        padded = F.pad(x, (1, 1, 1, 1))
        rows, columns = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        out = 0
        for dy in range(3):
            for dx in range(3):
                shifted = padded[:, :, dy : dy + 2 * rows - 1 : 2, dx : dx + 2 * columns - 1 : 2]
                out = out + torch.einsum("oi,bihw->bohw", weight[:, :, dy, dx], shifted)
        x = gelu(out) if index < 6 else out
    return x


def trunk_block(state: State, at: str, x: Tensor) -> Tensor:
    """One residual branch on (B, D, H, W)."""
    branch = at + "attn.qkv_pos."
    y = norm(state, at + "norm1", x.movedim(1, -1)).movedim(-1, 1)
    y = gelu(pointwise(state, branch + "0", y))
    padded, weight, out = F.pad(y, (1, 1, 1, 1)), state[branch + "2.weight"], 0
    for dy in range(3):
        for dx in range(3):
            shifted = padded[:, :, dy : dy + y.shape[2], dx : dx + y.shape[3]]
            out = out + weight[:, 0, dy, dx, None, None] * shifted
    y = gelu(out + state[branch + "2.bias"][:, None, None])
    means = y.sum((2, 3), keepdim=True) / (y.shape[2] * y.shape[3])
    gate = pointwise(state, branch + "4.conv_expand", pointwise(state, branch + "4.conv_reduce", means).clamp(min=0))
    y = pointwise(state, branch + "5", y / (1 + torch.exp(-gate)))
    return x + state[at + "gamma_1"][:, None, None] * y


def aggregate(state: State, at: str, patches: Tensor, multiclass: bool) -> Tensor:
    """The class tokens after their block: (B, N, D) -> (B, T, D)."""
    tokens = state["cls_token"].expand(len(patches), -1, -1)
    count, dim = tokens.shape[1:]
    together = norm(state, at + "norm1", torch.cat([tokens, patches], dim=1))
    q, keys = together[:, :count], together[:, count:] if multiclass else together
    q, k, v = (linear(state, f"{at}attn.{name}", x) for name, x in (("q", q), ("k", keys), ("v", keys)))
    scores = torch.exp(q @ k.transpose(1, 2) / math.sqrt(dim))
    seen = (scores / scores.sum(dim=2, keepdim=True)) @ v
    tokens = tokens + state[at + "gamma_1"] * linear(state, at + "attn.proj", seen)
    hidden = gelu(linear(state, at + "mlp.fc1", norm(state, at + "norm2", tokens)))
    return tokens + state[at + "gamma_2"] * linear(state, at + "mlp.fc2", hidden)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(state: State, at: str, x: Tensor) -> Tensor:
    return x @ state[at + ".weight"].T + state[at + ".bias"]


def pointwise(state: State, at: str, x: Tensor) -> Tensor:
    """A 1 x 1 convolution of (B, D, H, W)."""
    mixed = torch.einsum("oi,bihw->bohw", state[at + ".weight"][:, :, 0, 0], x)
    return mixed + state[at + ".bias"][:, None, None]


def norm(state: State, at: str, x: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * state[at + ".weight"] + state[at + ".bias"]
    )
