"""What a network knows of positions before it sees a picture. An Image is Worth 16x16 Words. Dosovitskiy et al., ICLR
2021, arXiv 2010.11929, figure 7, centre; the tables of offsets are Swin's, Liu et al., ICCV 2021, arXiv 2103.14030.

Idea      the cosine of every two position embeddings: a trained table has learned that patches lie on a plane, and each
          tile peaks at its own place, often with a cross along its row and column. Random vectors have cosines of
          deviation D ** -0.5 and no order. Networks with a bias for each offset show that bias instead.
Caution   what all embeddings share raises every cosine: compare within a picture. Positions that are vectors which meet
          the queries, or come out of convolutions with padding, have no table that could be shown without an image.
Cost      P ** 2 D, no data.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from vitrail.interpretability.available import not_available


class Positions(NamedTuple):
    """How alike a model's position embeddings are."""

    similarity: NDArray[np.float32]
    """(gh, gw, gh, gw) cosines in [-1, 1]: [r, c] is the tile of the patch at row r and column c."""
    correlation: float
    """Spearman's, of cosine and nearness over all pairs of patches: 1, the nearer the more alike; 0 where all are."""
    kind: Literal["learned", "fixed"]
    """A parameter, or computed once (sines and cosines)."""
    name: str
    """Of the table in the model."""


def position_similarity(model: nn.Module) -> Positions:
    """The cosines between the rows of a model's table of absolute positions, class and other prefix tokens left out.

    Raises UserError for a model without such a table; `relative_bias` may have something to show of it.
    """
    whole: Any = getattr(model, "_orig_mod", model)
    grid: tuple[int, int] = getattr(whole, "grid", (0, 0))
    tables = _absolute(whole, grid)
    if not tables:
        instead = "relative_bias" if _tables(whole) else ""
        raise not_available("position_similarity", whole, "it has no table of positions", instead)
    name, table = next(iter(tables.items()))
    rows = F.normalize(table.detach().double().cpu(), dim=1)
    cosines = (rows @ rows.T).numpy()
    kind: Literal["learned", "fixed"] = "learned" if name in dict(whole.named_parameters()) else "fixed"
    return Positions(cosines.astype(np.float32).reshape(*grid, *grid), _nearness(cosines, grid), kind, name)


def relative_bias(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """What each offset adds to the logits of attention, by the name of its module: (h, 2 gh - 1, 2 gw - 1) each.

    The query is in the middle: [:, gh - 1 + y, gw - 1 + x] is the bias of the key y rows below and x columns to the
    right of it. Raises UserError for a model whose attention has no bias that is the same for every picture.
    """
    whole: Any = getattr(model, "_orig_mod", model)
    with torch.no_grad():
        found = {name: table.float().cpu().numpy() for name, table in _tables(whole).items()}
    if not found:
        raise not_available("relative_bias", whole, "it has no table of relative positions that is added to attention")
    return found


def _absolute(model: nn.Module, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Tables with a row for each place of `grid`, by their names: (P, D) each, the rows of prefix tokens cut off."""
    places, prefix = grid[0] * grid[1], getattr(model, "num_prefix_tokens", 0)
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        table = tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
        says = re.search(r"(?:^|[._])(?:pos|wpe)", name) and "rel" not in name
        if says and table.ndim == 2 and len(table) in (places, places + prefix):
            found[name] = table[-places:]
    return found


def _nearness(cosines: NDArray[np.float64], grid: tuple[int, int]) -> float:
    """The rank correlation of cosine and negative distance on the grid, over pairs of different places."""
    down, across = np.divmod(np.arange(len(cosines)), grid[1])
    one, two = np.triu_indices(len(cosines), k=1)
    near = rankdata(-np.hypot(down[one] - down[two], across[one] - across[two]))
    alike = rankdata(cosines[one, two].round(6))  # equal up to rounding is equal
    near, alike = near - near.mean(), alike - alike.mean()
    scale = math.sqrt((near @ near) * (alike @ alike))
    return float(near @ alike / scale) if scale else 0.0


def _tables(model: nn.Module) -> dict[str, Tensor]:
    """The pictures of `relative_bias`, as part of the graph."""
    found = {}
    for name, module in model.named_modules():
        rows = _rows(module)
        side = math.isqrt(len(rows)) if rows is not None else 0
        if rows is not None and side**2 == len(rows):
            found[name] = rows.T.unflatten(1, (side, side))
    return found


def _rows(module: nn.Module) -> Tensor | None:
    """What each offset key - query, in reading order, adds to the logits of `module`, (offsets, h); None: nothing."""
    site: Any = module
    if hasattr(site, "position_table"):
        return site.position_table().flip(0)  # these tables count query - key
    if not inspect.signature(site.forward).parameters:  # it speaks before it sees a picture
        return _unfolded(site(), dict(module.named_buffers(recurse=False)).get("relative_position_index"))
    if isinstance(getattr(site, "relative_position_bias_table", None), Tensor):
        return site.relative_position_bias_table.flip(0)
    return None


def _unfolded(bias: Tensor, index: Tensor | None) -> Tensor:
    """The offsets of key - query (offsets, h): as they are, or gathered to (h, N, N) by an `index` (N, N) of rows."""
    if index is None:
        return bias
    rows = bias.new_empty(int(index.max()) + 1, len(bias))
    return rows.index_copy(0, index.flatten(), bias.flatten(1).T).flip(0)
