"""Relevance: Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers.
Chefer, Gur and Wolf, ICCV 2021, arXiv 2103.15679; the form of the authors' notebook for ViT, without LRP.

Idea      weigh each attention A by the gradient G of the class's logit, keep what speaks for the class, and add what a
          block mixes to what its tokens already hold: Abar = mean_h relu(G A), R <- R + Abar R, R = I at first.
Cost      a forward and a backward pass with all maps in memory. Only the row that is read out is needed: a vector goes
          down from the top, r <- r + r Abar, B L N^2, where the matrix costs B L N^3.
Blind to  what speaks against the class, what values and MLPs do, and attention within patches (TNT). Of two tokens that
          are read, class and distillation, the row is the class token's.

Where tokens change from block to block (windows that shift and merge, pooled keys, convolutions between) there is no
such product. `attention_gradient` is for these: relu(G A) itself, summed over heads, queries and layers where the keys
lie, as Grad-SAM sums it (Barkan et al., CIKM 2021, arXiv 2204.11073). It says where the attention that speaks for the
class lands, and follows nothing back through the blocks below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.interpretability.attention import located, none_recorded, read_out, to_grid
from vitrail.interpretability.available import not_available
from vitrail.interpretability.gradcam import class_of
from vitrail.layers.attention import Maps, probing, received, record


def relevance(model: nn.Module, images: Tensor, *, target: Tensor | int | None = None) -> Tensor:
    """What speaks for class `target` in `images` (B, C, H, W), normalised: (B, gh, gw), at least 0, not scaled.

    `target` is one class, one for each image (B,), or None for the predicted one. It starts where the model reads: at
    the class token, at all patches alike in a model that averages them, at what the probe of attention pooling gathers.
    What a token holds of itself from the start, the I of R, is left out: all zero where nothing speaks for the class.
    Raises UserError for a model no block of which attends over all tokens.
    """
    maps = speaking(model, images, target, "relevance")
    whole = [weights[:, 0] for name, weights in maps.items() if name not in maps.places]
    blocks = [weights for weights in whole if weights.shape[-2] == weights.shape[-1]]
    if not blocks:
        raise not_available("relevance", model, "no block of it attends over all tokens", "attention-gradient")
    top = whole[-1]
    if top.shape[-2] == 1 and top.shape[-1] == blocks[-1].shape[-1]:  # a learned query, which holds nothing itself
        return to_grid(propagate(whole[:-1], top[:, 0]), model, images)
    start = read_out(model, top[:, 0])
    return to_grid(propagate(whole, start) - start, model, images)


def propagate(maps: Sequence[Tensor], start: Tensor) -> Tensor:
    """The rows `start` (B, N) of R <- R + Abar R, over `maps` (B, Q, M), first block first: (B, N).

    A map of M < N tokens is from before the first N - M joined; one of Q < M queries asks from the first Q alone.
    """
    row = start
    for mixing in reversed(maps):
        late = row.shape[-1] - mixing.shape[-1]
        asking = row[:, late : late + mixing.shape[-2]]
        row = row + F.pad((asking.unsqueeze(-2) @ mixing).squeeze(-2), (late, 0))
    return row


def attention_gradient(model: nn.Module, images: Tensor, *, target: Tensor | int | None = None) -> Tensor:
    """Where the attention lands that speaks for class `target`: (B, gh, gw) on the finest grid of keys, at least 0.

    `images` and `target` are as of `relevance`; any model with attention will do. A value is in units of the logit: how
    much its growth would be, to first order, if all this attention (the mean over heads) grew by its own size. A cell
    of a coarser grid spreads its value. Raises UserError for a model without attention.
    """
    pictures = []
    for site in located(speaking(model, images, target, "attention-gradient"), model, images):
        asks = torch.zeros_like(site.places.queries)  # all count, the class token too
        pictures.append(received(site.weights, site.places._replace(queries=asks)) * asks.numel())
    finest = max((picture.shape[-2:] for picture in pictures), key=lambda grid: grid[0] * grid[1])
    spread = [F.interpolate(p * (p[0, 0].numel() / (finest[0] * finest[1])), finest) for p in pictures]
    return torch.stack(spread).sum(0)[:, 0]


def speaking(model: nn.Module, images: Tensor, target: Tensor | int | None, method: str) -> Maps:
    """relu(G A), mean over heads, of every attention of one pass: (B * G, 1, N, M) by name, with its places.

    A is what is multiplied with the values and G the gradient of the logit of `target`. Raises UserError, naming
    `method`, for a model without attention.
    """
    with torch.enable_grad(), probing(_watched), record(model) as maps:
        logits = model(images)
        if not maps:
            raise none_recorded(method, model)
        score = logits.gather(1, class_of(target, logits)).sum()
        gradients = torch.autograd.grad(score, list(maps.values()), materialize_grads=True)
    for name, gradient in zip(list(maps), gradients, strict=True):
        maps[name] = (maps[name].detach() * gradient).relu().mean(1, keepdim=True)
    return maps


def _watched(_site: nn.Module, weights: Tensor) -> Tensor:
    """With a gradient, also where all parameters below are frozen."""
    return weights if weights.requires_grad else weights.requires_grad_()
