"""Raw attention of the token that is read out, per head. As in Emerging Properties in Self-Supervised Vision
Transformers (DINO). Caron et al., ICCV 2021, arXiv 2104.14294, figure 1.

Idea      one row of one block's attention, laid out over the patches: where each head looks.
Caution   attention is not importance (a value may be near zero), and a picture scaled to its own range hides that a
          head is almost uniform: look at its entropy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.layers.attention import Maps, received, record


class Attention(NamedTuple):
    """What a model recorded: `blocks`, one (B, h, N, N) a block; `read` (B, N), how the tokens at the top are read out,
    rows summing to 1; `probe` (B, h, N), the same by head where one learned query or the class token alone reads."""

    blocks: list[Tensor]
    read: Tensor
    probe: Tensor | None


def recorded(model: nn.Module, images: Tensor, method: str) -> Attention:
    """One pass of `images` (B, C, H, W) with the maps kept of every attention over all tokens.

    Raises UserError, naming `method`, when there is none.
    """
    maps = _record(model, images)
    plain = [weights for name, weights in maps.items() if name not in maps.places]
    blocks = [weights for weights in plain if weights.shape[-2] == weights.shape[-1]]
    if not blocks:
        problem = "no block of it attends over all tokens" if maps else "it has no softmax attention between tokens"
        raise not_available(method, model, problem, "gradcam")
    probe = plain[-1][:, :, 0] if plain[-1].shape[-2] == 1 else None
    tokens = blocks[-1].shape[-1]
    if probe is not None and probe.shape[-1] > tokens:  # class attention: what the class token keeps for itself goes
        probe = probe[..., -tokens:] / probe[..., -tokens:].sum(-1, keepdim=True)
    blocks = [_joined_by(tokens - weights.shape[-1], weights) for weights in blocks]
    return Attention(blocks, _read(model, blocks[0], probe), probe)


def _joined_by(late: int, weights: Tensor) -> Tensor:
    """A map of a block before `late` prefix tokens joined, as if they had been there and kept to themselves."""
    if late == 0:
        return weights
    whole = torch.eye(weights.shape[-1] + late, dtype=weights.dtype, device=weights.device)
    whole = whole.expand(*weights.shape[:2], -1, -1).clone()
    whole[:, :, late:, late:] = weights
    return whole


def records_attention(model: nn.Module, images: Tensor) -> bool:
    """Whether `recorded` would succeed, so that rollout is available."""
    maps = _record(model, images)
    return any(name not in maps.places and weights.shape[-2] == weights.shape[-1] for name, weights in maps.items())


def class_attention(model: nn.Module, images: Tensor, *, layer: int = -1) -> Tensor:
    """Attention over the picture in the `layer`-th attention (negative: from the top), per head: (B, h, gh, gw).

    The query is the class token; without one, all positions alike. With attention pooling the top layer is the probe.
    Attention in windows, rows or over pooled keys is laid out where its keys are. A head's values sum to 1 less what
    it gives to tokens without a place. Raises UserError for a layer that does not exist.
    """
    maps = _record(model, images)
    if not maps:
        recorded(model, images, "attention")  # which says why there is nothing
    names = list(maps)
    if not -len(names) <= layer < len(names):
        raise UserError(f"attention: there is no block {layer}; the model has blocks 0 to {len(names) - 1}")
    name = names[layer]
    if name in maps.places:
        return received(maps[name], maps.places[name])
    weights = maps[name]
    if weights.shape[-2] == 1:
        return to_grid(weights[:, :, 0], model, images)
    return to_grid(torch.einsum("bn,bhnm->bhm", _read(model, weights, None), weights), model, images)


def entropy(attention: Tensor) -> Tensor:
    """How even an attention map (..., gh, gw) is: 0 all on one patch, 1 the same everywhere. Shape (...)."""
    share = attention.flatten(-2)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
    nats = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return nats / math.log(max(share.shape[-1], 2))


def to_grid(row: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Values of all tokens (..., N) -> values of the patches (..., gh, gw), in the proportions of `images`.

    Prefix tokens come first and are left out; before they have joined, there are none.
    """
    high, wide = images.shape[-2:]
    for prefix in (getattr(model, "num_prefix_tokens", 0), 0):
        patches = row.shape[-1] - prefix
        rows = round(math.sqrt(patches * high / wide))
        if rows and patches % rows == 0 and rows * wide * rows == high * patches:
            return row[..., prefix:].unflatten(-1, (rows, patches // rows))
    raise UserError(f"{row.shape[-1]} tokens do not form a grid over an image of {high} x {wide} pixels; use gradcam")


def _record(model: nn.Module, images: Tensor) -> Maps:
    with torch.no_grad(), record(model) as maps:
        model(images)
    return maps


def _read(model: nn.Module, weights: Tensor, probe: Tensor | None) -> Tensor:
    """How the tokens of `weights` (B, h, N, N) are read out above it: (B, N)."""
    if probe is not None:
        return probe.mean(1)
    read = torch.zeros_like(weights[:, 0, 0])
    if getattr(model, "cls_token", None) is not None:
        read[:, 0] = 1
    else:
        prefix = getattr(model, "num_prefix_tokens", 0)
        read[:, prefix:] = 1 / (read.shape[-1] - prefix)
    return read
