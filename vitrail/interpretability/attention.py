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
from vitrail.layers.attention import record

PROBE = "attn_pool"  # the site of attention pooling, which reads the tokens out


class Attention(NamedTuple):
    """What a model recorded: `blocks`, one (B, h, N, N) a block; `probe` (B, h, N) of attention pooling, or None;
    `read` (B, N), how the tokens at the top are read out, rows summing to 1."""

    blocks: list[Tensor]
    probe: Tensor | None
    read: Tensor


def recorded(model: nn.Module, images: Tensor, method: str) -> Attention:
    """One pass of `images` (B, C, H, W) with every attention map kept.

    Raises UserError, naming `method`, when there is none or when the blocks do not all attend over the same tokens.
    """
    maps = _record(model, images)
    problem = _problem(maps)
    if problem:
        title = type(model).__module__.rsplit(".", 1)[-1]
        raise UserError(f"{method} is not available for {title} because {problem}; use gradcam")
    blocks = [attention for name, attention in maps.items() if name != PROBE]
    probe = maps[PROBE][:, :, 0] if PROBE in maps else None
    return Attention(blocks, probe, _read(model, blocks[0], probe))


def records_attention(model: nn.Module, images: Tensor) -> bool:
    """Whether `recorded` would succeed: rollout and attention are available."""
    return not _problem(_record(model, images))


def class_attention(model: nn.Module, images: Tensor, *, layer: int = -1) -> Tensor:
    """Attention over the patches in block `layer` (negative: from the top), per head: (B, h, gh, gw).

    The query is the class token; without one, all patches alike. With attention pooling, the top layer is the probe.
    A head's values sum to 1 less what it gives to prefix tokens. Raises UserError for a block that does not exist.
    """
    attention = recorded(model, images, "attention")
    if attention.probe is not None and layer == -1:
        return to_grid(attention.probe, model, images)
    count = len(attention.blocks)
    if not -count <= layer < count:
        raise UserError(f"attention: there is no block {layer}; the model has blocks 0 to {count - 1}")
    query = _read(model, attention.blocks[layer], None)
    rows = torch.einsum("bn,bhnm->bhm", query, attention.blocks[layer])
    return to_grid(rows, model, images)


def entropy(attention: Tensor) -> Tensor:
    """How even an attention map (..., gh, gw) is: 0 all on one patch, 1 the same everywhere. Shape (...)."""
    share = attention.flatten(-2)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
    nats = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return nats / math.log(max(share.shape[-1], 2))


def to_grid(row: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Values of all tokens (..., N) -> values of the patches (..., gh, gw), in the proportions of `images`."""
    prefix = getattr(model, "num_prefix_tokens", 0)
    patches = row.shape[-1] - prefix
    high, wide = images.shape[-2:]
    rows = round(math.sqrt(patches * high / wide))
    if rows == 0 or patches % rows:
        raise UserError(f"{patches} patches do not form a grid over an image of {high} x {wide} pixels; use gradcam")
    return row[..., prefix:].unflatten(-1, (rows, patches // rows))


def _record(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), record(model) as maps:
        model(images)
    return maps


def _problem(maps: dict[str, Tensor]) -> str:
    shapes = {attention.shape[-2:] for name, attention in maps.items() if name != PROBE}
    if not shapes:
        return "it has no softmax attention between tokens"
    if len(shapes) > 1 or any(queries != keys for queries, keys in shapes):
        return "its blocks do not all attend over the same tokens"
    return ""


def _read(model: nn.Module, attention: Tensor, probe: Tensor | None) -> Tensor:
    if probe is not None:
        return probe.mean(1)
    read = torch.zeros_like(attention[:, 0, 0])
    if getattr(model, "cls_token", None) is not None:
        read[:, 0] = 1
    else:
        prefix = getattr(model, "num_prefix_tokens", 0)
        read[:, prefix:] = 1 / (read.shape[-1] - prefix)
    return read
