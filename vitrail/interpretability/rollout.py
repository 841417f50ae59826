"""Attention rollout. Quantifying Attention Flow in Transformers. Abnar and Zuidema, ACL 2020, arXiv 2005.00928.

Idea      the residual connection keeps half of a token, attention mixes the other half, so a block mixes tokens by
          (A + I) / 2, and the whole network by the product of these matrices, the last block leftmost.
Cost      only the row of the token that is read out is needed: a vector goes down from the top, B L N^2, where the
          product of matrices costs B L N^3.
Blind to  values, MLPs and classes: every class gets the same map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.attention import recorded, to_grid

Fusion = Literal["mean", "max", "min"]


def rollout(
    maps: Sequence[Tensor], *, start: Tensor | None = None, fusion: Fusion = "mean", discard_ratio: float = 0.0
) -> Tensor:
    """The share of every input token in what the model reads out at the top: (B, N), rows sum to 1.

    `maps` holds one (B, h, N, N) a block, first block first. `start` (B, N) says how the tokens at the top are read;
    None means the class token, token 0. `fusion` merges heads: mean is the paper's, max and min are vit-explain's.
    `discard_ratio` drops that share of the smallest fused weights of each block before the residual is added, which
    sharpens deep networks. Raises UserError for a ratio outside [0, 1).
    """
    if not 0 <= discard_ratio < 1:
        raise UserError(f"rollout: discard_ratio is {discard_ratio}; give a share from 0 to below 1, such as 0.9")
    if start is None:
        start = torch.zeros_like(maps[-1][:, 0, 0])
        start[:, 0] = 1
    row = start
    for attention in reversed(maps):
        mixing = _discard(_fuse(attention, fusion), discard_ratio)
        row = row / (1 + mixing.sum(-1))  # rows of A + I are scaled to 1; each belongs to one query
        row = row + (row.unsqueeze(-2) @ mixing).squeeze(-2)
    return row


def rollout_map(model: nn.Module, images: Tensor, *, fusion: Fusion = "mean", discard_ratio: float = 0.0) -> Tensor:
    """Rollout of `images` (B, C, H, W), normalised: (B, gh, gw) over the patches, prefix tokens left out.

    It starts where the model reads: at the class token, at the probe's attention in a model with attention pooling,
    at all patches alike in a model that averages them. Raises UserError when the model records no square maps.
    """
    attention = recorded(model, images, "rollout")
    row = rollout(attention.blocks, start=attention.read, fusion=fusion, discard_ratio=discard_ratio)
    return to_grid(row, model, images)


def _fuse(attention: Tensor, fusion: Fusion) -> Tensor:
    if fusion == "mean":
        return attention.mean(1)
    return attention.amax(1) if fusion == "max" else attention.amin(1)


def _discard(mixing: Tensor, ratio: float) -> Tensor:
    count = int(mixing[0].numel() * ratio)
    if count == 0:
        return mixing
    lowest = mixing.flatten(1).topk(count, largest=False).indices
    kept = mixing.flatten(1).scatter(1, lowest, 0.0).view_as(mixing)
    kept[:, 0, 0] = mixing[:, 0, 0]  # as vit-explain: the class token never loses itself
    return kept
