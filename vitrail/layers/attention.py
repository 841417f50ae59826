"""Softmax attention: the one place where it is computed, where its kernel is chosen and where it is observed.

    with record(model) as maps:      # maps["blocks.3.attn"]: (B, h, N, N)
        model(images)

Nobody watching: PyTorch's fused kernel, no weights in memory. Somebody watching: the same product with the weights
made explicit, differentiable, so that relevance methods work. A *probe* is a function `(site, weights) -> weights`; it
may look (as `record` does) or change (an ablation zeroes a head). The list of probes is the only module-level state
of the library: filled by a `with`, emptied by it.

Shapes    B batch, h heads, N queries, M keys, d head width; leading dimensions may be any, so papers that attend in
          windows, rows or neighbourhoods fold them into B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Probe = Callable[[nn.Module, Tensor], Tensor]
_probes: list[Probe] = []

HALF = (torch.bfloat16, torch.float16)
FEW = 640
"""Keys up to which a CPU may keep the weights of a pass for its backward: those of 384 pixels in patches of 16."""


class Places(NamedTuple):
    """Where the tokens of a map (B * G, h, N, M) lie on the picture, for a site that folds an image into G parts.

    `queries` (G, N) and `keys` (G or 1, N or 1, M) count the cells of a grid in reading order; -1 is a token without a
    place (class token, padding). With more than one key grid (fine and pooled keys) the counts go on from one to the
    next; a cell of a coarser grid covers its share of the picture.
    """

    queries: Tensor
    keys: Tensor
    query_grid: tuple[int, int]
    key_grids: tuple[tuple[int, int], ...]


class Maps(dict[str, Tensor]):
    """Recorded attention by the name of the module; `places` says where it lies, for the sites that fold."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Places] = {}


_watchers: list[Callable[[nn.Module, Places], None]] = []


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    site: nn.Module,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scale + bias) v: (..., h, N, d), (..., h, M, d), (..., h, M, e) -> (..., h, N, e).

    `site` is the calling module: its name in the model is the name of its map, and it attends once a pass. `bias` is
    added to the logits (float) or masks them where False (bool), broadcast over leading dimensions; one of G entries
    for q of B * G is that of the G parts of each picture. `scale` is d ** -0.5 unless given. `dropout` drops weights
    while `site` trains.
    """
    dropout = dropout if site.training else 0.0
    if _probes:
        weights = observe(site, attention_weights(q, k, bias=bias, scale=scale))
    elif _learns_faster_unfused(q, k, bias):
        logits = _logits(q, k, scale)
        with torch.autocast("cpu", enabled=False):  # which would go to float32, at twice the time of the whole
            weights = _biased(logits, bias).softmax(dim=-1)
    else:
        if bias is not None:
            bias = bias.repeat(len(q) // len(bias), 1, 1, 1) if _of_parts(bias, q) else bias
            bias = bias if bias.dtype == torch.bool else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return F.dropout(weights, dropout).to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, *, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias), at least in float32: (..., h, N, d), (..., h, M, d) -> (..., h, N, M).

    For papers that change the weights before they are applied: they call this, change them, `observe` and multiply.
    """
    logits = _logits(q, k, scale)
    # bf16 weights sum to 1 only within 2e-3, and what is observed is meant to be measured
    return _biased(logits.float() if logits.dtype in HALF else logits, bias).softmax(dim=-1)


def _logits(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    return (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)


def _of_parts(bias: Tensor, x: Tensor) -> bool:
    return bias.ndim == x.ndim == 4 and 1 < len(bias) < len(x)


def _biased(logits: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return logits
    if _of_parts(bias, logits):
        return _biased(logits.unflatten(0, (-1, len(bias))), bias).flatten(0, 1)
    return logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias.to(logits.dtype)


def _learns_faster_unfused(q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
    """Whether on a CPU forward and backward take longer with the fused kernel than with explicit weights.

    It knows no gradient of a bias: PyTorch then computes as we do, in float32, with more copies. And its backward in
    half precision is slow, 30 ms against 12 for the 197 tokens of a ViT-S at batch 16; weights that are kept would
    be most of the memory where tokens are many.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if bias is not None and bias.requires_grad:
        return True
    half = q.dtype in HALF or (torch.is_autocast_enabled("cpu") and q.dtype == torch.float32)
    return half and q.requires_grad and k.shape[-2] <= FEW


def normalised(x: Tensor, dim: int) -> Tensor:
    """A softmax that is not attention (weights of branches, normalised keys): nobody records it."""
    return x.softmax(dim=dim)


def observe(site: nn.Module, weights: Tensor) -> Tensor:
    """Show `weights` (..., h, N, M) of `site` to every probe and return them as the probes leave them."""
    for probe in _probes:
        weights = probe(site, weights)
    return weights


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """Let `probe` see, and change, every attention computed inside the `with`."""
    _probes.append(probe)
    try:
        yield
    finally:
        _probes.remove(probe)


def is_watched() -> bool:
    """Whether some probe sees the attention that is computed now."""
    return bool(_probes)


def place(site: nn.Module, places: Callable[[], Places]) -> None:
    """Tell who records where the tokens of `site` lie; computed only when somebody does.

    A site that attends in windows, rows or neighbourhoods, or over pooled keys, calls this in its pass, and finds the
    places by folding a picture of indices as it folds its tokens.
    """
    for watcher in _watchers:
        watcher(site, places())


@contextmanager
def record(model: nn.Module) -> Iterator[Maps]:
    """Collect the attention of every pass inside the `with`, by the name of the module: a dict that the pass fills.

    Each map is (B, h, N, M), its rows sum to 1, and it is part of the graph: gradients reach it, and a later pass
    overwrites it. Sites that fold the picture leave (B * G, h, N, M); `maps.places` says where it lies. The logits are
    those of an unwatched pass up to rounding. Other models are not recorded. In train mode maps are taken before
    attention dropout.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps; the sites belong to what it wraps
    names = {module: name for name, module in model.named_modules()}
    maps = Maps()

    def note(site: nn.Module, places: Places) -> None:
        if site in names:
            maps.places[names[site]] = places

    def keep(site: nn.Module, weights: Tensor) -> Tensor:
        if site in names:
            maps[names[site]] = weights
        return weights

    _watchers.append(note)
    try:
        with probing(keep):
            yield maps
    finally:
        _watchers.remove(note)


def global_places(queries: tuple[int, int], keys: tuple[int, int], prefix: int = 0) -> Places:
    """Places of a site where every position of the grid `queries` asks all of the grid `keys`, in reading order; the
    first `prefix` of both are tokens without a place."""
    asking, asked = (torch.arange(-prefix, high * wide).clamp(min=-1) for high, wide in (queries, keys))
    return Places(asking[None], asked[None, None], queries, (keys,))


def received(weights: Tensor, places: Places) -> Tensor:
    """What each position of the picture receives from all queries of a folded map, by head: (B * G, h, N, M) ->
    (B, h, H, W) on the finest key grid. Values sum to 1 less what goes to tokens without a place."""
    places = places._replace(queries=places.queries.to(weights.device), keys=places.keys.to(weights.device))
    folds, queries = places.queries.shape
    weights = weights.unflatten(0, (-1, folds)).transpose(1, 2)  # (B, h, G, N, M)
    asks = (places.queries >= 0)[:, :, None]
    keys = places.keys.expand(folds, queries, -1)
    lands = weights * (asks & (keys >= 0)) / asks.sum()
    counts = [height * width for height, width in places.key_grids]
    cells = lands.new_zeros(*lands.shape[:2], sum(counts))
    cells = cells.index_add(2, keys.clamp(min=0).flatten(), lands.flatten(2))
    fine = places.key_grids[0]
    picture = lands.new_zeros(*lands.shape[:2], *fine)
    for part, grid in zip(cells.split(counts, dim=2), places.key_grids, strict=True):
        share = part.unflatten(2, grid) * (grid[0] * grid[1] / (fine[0] * fine[1]))
        picture = picture + F.interpolate(share, size=fine, mode="nearest")
    return picture


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, arXiv 1706.03762), queries, keys and values from one matrix.

    (B, N, D) -> (B, N, D) with D = dim, h = num_heads, d = D / h. `drop` acts on the output.
    """

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0, qkv_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        x = attend(q, k, v, site=self)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class AttentionPool(nn.Module):
    """MAP, multi-head attention pooling: one learned query reads all tokens (Zhai et al., 2021, arXiv 2106.04560).

    (B, N, D) -> (B, D). A residual MLP follows; its query is learned, so it has no residual of its own.
    """

    def __init__(self, dim: int, num_heads: int, mlp: nn.Module):
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.latent.expand(len(x), -1, -1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        x = self.proj(attend(q, k, v, site=self).transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x)))[:, 0]
