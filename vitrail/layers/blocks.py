"""The plain transformer block and its parts, as ViT, DeiT and their descendants share them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitrail.layers.attention import is_watched


class Mlp(nn.Module):
    """Two linear layers with an activation between, on each token: (..., D) -> (..., D), or -> (..., out)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        act: Callable[[], nn.Module] = nn.GELU,
        out: int | None = None,
    ):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, out or dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation of GELU that several releases were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016, arXiv 1603.09382): drop a residual branch for a sample, while training.

    What is kept is scaled by 1 / (1 - rate), so the expectation is unchanged.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def residual(x: Tensor, branch: Callable[[Tensor], Tensor], drop_path: DropPath) -> Tensor:
    """x + drop_path(branch(x)), (B, ...) -> (B, ...), computing while it trains only what is not dropped.

    A random sub-batch of k = ceil(B keep) samples goes through the branch (DINOv2, Oquab et al., 2023, arXiv
    2304.07193), and of these each is kept with probability B keep / k: so a sample survives with exactly `keep`, as
    with a mask, and sizes follow from B alone. `branch` treats each sample by itself; one whose BatchNorm looks at the
    whole batch is added as x + drop_path(branch(x)). Where attention is watched all samples are computed.
    """
    size, keep = len(x), 1.0 - drop_path.rate
    count = math.ceil(size * keep - 1e-9)
    if not drop_path.training or count == size or is_watched():
        return x + drop_path(branch(x))
    if count == 0:
        return x
    chosen = torch.randperm(size, device=x.device)[:count]
    added = branch(x.index_select(0, chosen))
    stays = min(size * keep / count, 1.0)
    mask = added.new_empty(count, *[1] * (added.ndim - 1)).bernoulli_(stays) if stays < 1 else 1.0
    return x.index_add(0, chosen, (added * (mask / keep)).to(x.dtype))


class LayerScale(nn.Module):
    """A learned factor a channel, near 0 at first (CaiT, Touvron et al., 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + drop_path(ls1(attn(norm1(x)))), then the same with the MLP: (B, N, D) -> (B, N, D).

    `attn` and `mlp` are passed in; a paper that scales its branches replaces `ls1` and `ls2`. `eps` is the norms'.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float = 0.0, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.ls1: nn.Module = nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.ls2: nn.Module = nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, lambda x: self.ls1(self.attn(self.norm1(x))), self.drop_path1)
        return residual(x, lambda x: self.ls2(self.mlp(self.norm2(x))), self.drop_path2)


def drop_path_rates(largest: float, depth: int) -> list[float]:
    """Stochastic depth's linear rule: 0 for the first block, `largest` for the last."""
    return [largest * i / max(depth - 1, 1) for i in range(depth)]


def init_xavier(model: nn.Module) -> None:
    """Linear weights Xavier-uniform, biases 0: the initialisation of ViT's authors, right for any width."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_truncated_normal(model: nn.Module) -> None:
    """Linear weights from a normal of deviation 0.02 cut at 2, biases 0: DeiT's, made for widths of some hundreds."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
