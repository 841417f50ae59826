"""Raw attention of the class token, or of any patch, per head and block. As in Emerging Properties in Self-Supervised
Vision Transformers (DINO). Caron et al., ICCV 2021, arXiv 2104.14294, figure 1.

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
from vitrail.layers.attention import Maps, Places, global_places, received, record


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
        if not maps:
            raise none_recorded(method, model)
        raise not_available(method, model, "no block of it attends over all tokens", "gradcam")
    probe = plain[-1][:, :, 0] if plain[-1].shape[-2] == 1 else None
    tokens = blocks[-1].shape[-1]
    if probe is not None and probe.shape[-1] > tokens:  # class attention: what the class token keeps for itself goes
        probe = probe[..., -tokens:] / probe[..., -tokens:].sum(-1, keepdim=True)
    blocks = [_joined_by(tokens - weights.shape[-1], weights) for weights in blocks]
    read = read_out(model, blocks[0][:, 0, 0]) if probe is None else probe.mean(1)
    return Attention(blocks, read, probe)


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


class Site(NamedTuple):
    """One attention of a pass, and where its tokens lie."""

    name: str
    """Of the module that attends."""
    weights: Tensor
    """(B * G, h, N, M), as `places` says."""
    places: Places
    class_token: bool
    """Whether query 0 is the class token."""

    def seen_from(self, query: tuple[int, int] | None = None) -> Tensor:
        """What the position `query` (row, column of `places.query_grid`) gives to each key, per head: (B, h, gh, gw) on
        the finest key grid. None: the class token, or all positions alike where there is none."""
        asks = self.places.queries
        if query is not None:
            chosen = asks == self._cell(query)
        elif self.class_token:
            chosen = torch.arange(asks.shape[-1], device=asks.device).expand_as(asks) == 0
        else:
            chosen = asks >= 0
        return received(self.weights, self.places._replace(queries=torch.where(chosen, 0, -1)))

    def _cell(self, query: tuple[int, int]) -> int:
        high, wide = self.places.query_grid
        row, column = query
        if 0 <= row < high and 0 <= column < wide:
            return row * wide + column
        raise UserError(
            f"attention: no query at {row},{column}: in {self.name} the rows are 0 to {high - 1} "
            f"and the columns 0 to {wide - 1}"
        )


def sites(model: nn.Module, images: Tensor) -> list[Site]:
    """Every attention of one pass of `images` (B, C, H, W), in the order of the pass; UserError where there is none."""
    maps = _record(model, images)
    if not maps:
        raise none_recorded("attention", model)
    return located(maps, model, images)


def none_recorded(method: str, model: nn.Module) -> UserError:
    """The error to raise where a pass of `model` recorded nothing."""
    return not_available(method, model, "it has no softmax attention between tokens", "gradcam")


def located(maps: Maps, model: nn.Module, images: Tensor) -> list[Site]:
    """Recorded `maps`, each with its places, those over all tokens too."""
    found = []
    for name, weights in maps.items():
        places = maps.places.get(name) or _over_all(weights, model, images)
        asks = places.queries
        first = getattr(model, "num_prefix_tokens", 0) > 0 and len(asks) == 1 and bool(asks[0, 0] < 0)
        found.append(Site(name, weights, places, first))
    return found


def _over_all(weights: Tensor, model: nn.Module, images: Tensor) -> Places:
    """Places of a map (B, h, N, N) over all tokens, or (B, h, 1, N) of one query, a cell that covers the picture."""
    queries, keys = weights.shape[-2:]
    grid = to_grid(weights[0, 0, 0], model, images).shape
    places = global_places((grid[0], grid[1]), (grid[0], grid[1]), keys - grid[0] * grid[1])
    return places if queries > 1 else places._replace(queries=places.keys.new_zeros(1, 1), query_grid=(1, 1))


def attention_from(
    model: nn.Module, images: Tensor, *, layer: int = -1, query: tuple[int, int] | None = None
) -> Tensor:
    """Attention over the picture in the `layer`-th attention (negative: from the top), per head: (B, h, gh, gw).

    `query` is the row and column of the patch that asks, on the grid of the queries there; None is the class token,
    and without one all positions alike. With attention pooling the top layer is the probe. Attention in windows, rows
    or over pooled keys is laid out where its keys are. A head's values sum to 1 less what it gives to tokens without a
    place. Raises UserError for a layer or a query that does not exist.
    """
    return at_layer(sites(model, images), layer).seen_from(query)


def at_layer(found: list[Site], layer: int) -> Site:
    """The `layer`-th of `sites`, negative from the top; UserError when there is none."""
    if -len(found) <= layer < len(found):
        return found[layer]
    raise UserError(f"attention: there is no block {layer}; the model has blocks 0 to {len(found) - 1}")


def class_attention(model: nn.Module, images: Tensor, *, layer: int = -1) -> Tensor:
    """`attention_from` the class token: (B, h, gh, gw)."""
    return attention_from(model, images, layer=layer)


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


def read_out(model: nn.Module, tokens: Tensor) -> Tensor:
    """How the tokens at the top, (B, N) in number, are read: the class token, or all patches alike; rows sum to 1."""
    read = torch.zeros_like(tokens)
    if getattr(model, "cls_token", None) is not None:
        read[:, 0] = 1
    else:
        prefix = getattr(model, "num_prefix_tokens", 0)
        read[:, prefix:] = 1 / (read.shape[-1] - prefix)
    return read
