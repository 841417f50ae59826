"""Which layers say the same: CKA. Similarity of Neural Network Representations Revisited. Kornblith et al., ICML 2019,
arXiv 1905.00414. In batches: Do Wide and Deep Networks Learn the Same Things? Nguyen et al., ICLR 2021, arXiv
2010.15327. Of ViTs: Do Vision Transformers See Like Convolutional Neural Networks? Raghu et al., NeurIPS 2021, arXiv
2108.08810.

Idea      a layer is the Gram matrix of its images: which are alike to it. Two layers are as similar as the centred Gram
          matrices are parallel, whatever their widths, so that layers of different architectures can be compared.
Caution   with fewer images than features the biased form is near 1 for pure noise (0.86 for 128 images and 768
          features); the unbiased form is near 0 then, and may fall below 0 or exceed 1: it is not clipped. A few large
          tokens or channels rule the deep layers. The fine grid in Raghu's figures comes from alternating branch
          outputs with the residual stream; here is the stream alone, without that grid.
Cost      one pass a model; L n^2 numbers for L layers and batches of n images, one matrix product for all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.stream import Flow, tapped, trunk

Tokens = Literal["flat", "mean"]


class Similarity(NamedTuple):
    """CKA of every block of one model with every block of another, or of itself."""

    rows: list[str]
    """The blocks of the model, first to last (R)."""
    columns: list[str]
    """The blocks of the other model (C)."""
    values: NDArray[np.float64]
    """(R, C): 1 for the same up to rotation and scale, about 0 for unrelated; nan where a block does not vary."""
    images: int
    """How many images count."""
    dropped: int
    """How many do not, because their batch is smaller than the others."""


def gram(x: Tensor) -> Tensor:
    """The linear kernel of features (..., n, p), centred over the n images, on the CPU: (..., n, n)."""
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x[..., :1, :]  # so that features that do not vary become 0, not the rounding of their mean
    x -= x.mean(-2, keepdim=True)
    return (x @ x.mT).cpu()


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Biased linear CKA of features (n, p) and (n, q) of the same n images, in [0, 1]; nan where one does not vary."""
    one, two = gram(x).double(), gram(y).double()
    return float((one * two).sum() / (one.norm() * two.norm()))


def u_centred(grams: Tensor) -> Tensor:
    """Gram matrices (..., n, n) whose inner products are the unbiased estimates of HSIC, float64, same shape.

    The form of Székely and Rizzo (2014) of the estimator of Song et al. (2007, arXiv 0704.2668), more stable than the
    latter. Raises UserError for fewer than 4 images.
    """
    n = grams.shape[-1]
    if n <= 3:
        raise UserError(f"the unbiased HSIC needs at least 4 images, not {n}; give larger batches")
    centred = grams.to(torch.float64, copy=True)
    centred.diagonal(dim1=-2, dim2=-1).zero_()
    means = centred.sum(-1) / (n - 2)
    means -= means.sum(-1, keepdim=True) / (2 * (n - 1))
    centred -= means[..., :, None]
    centred -= means[..., None, :]
    centred.diagonal(dim1=-2, dim2=-1).zero_()
    return centred.div_(math.sqrt(n * (n - 3)))


def unbiased_hsic(one: Tensor, two: Tensor) -> Tensor:
    """HSIC1 of Gram matrices, both (..., n, n) of the same images: (...), float64; it may be negative."""
    return (u_centred(one) * u_centred(two)).sum((-2, -1))


class MinibatchCKA:
    """Unbiased CKA of R with C representations from Gram matrices that come batch by batch.

    HSIC1 is averaged over batches in the numerator and in each half of the denominator, then the ratio is taken: not
    the mean of ratios. All batches must have one size: another size than the first, and 3 images or fewer, is dropped
    and counted in `dropped`.
    """

    def __init__(self) -> None:
        self.images = 0
        self.dropped = 0
        self._size = 0
        self._pairs = self._rows = self._columns = torch.zeros(1, dtype=torch.float64)

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Take in the Gram matrices (R, n, n) and (C, n, n) of one batch."""
        n = rows.shape[-1]
        if n <= 3 or self._size not in (0, n):
            self.dropped += n
            return
        self._size = n
        self.images += n
        one = u_centred(rows).flatten(1)
        two = one if columns is rows else u_centred(columns).flatten(1)
        self._pairs = self._pairs + one @ two.mT  # sums do for means: the number of batches cancels
        self._rows = self._rows + one.square().sum(1)
        self._columns = self._columns + two.square().sum(1)

    def values(self) -> NDArray[np.float64]:
        """CKA so far (R, C); nan where a representation does not vary. Raises UserError when no batch counted."""
        if not self.images:
            raise UserError("CKA has seen no batch of 4 images or more; give larger batches, all of one size")
        return (self._pairs / (self._rows[:, None].sqrt() * self._columns.sqrt())).numpy()


def cka(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    other: nn.Module | None = None,
    *,
    tokens: Tokens = "flat",
) -> Similarity:
    """CKA between the residual stream after every block of `model`, in eval mode, and of `other`, None for itself.

    `batches` are normalised images (n, C, H, W), 128 or more and all batches alike; with `other` also pairs, the same
    images as each model wants them: pairs from one loader, as two shuffled loaders show two sets of images. An image is
    all its tokens, prefix and places, in one vector ("flat"), or their "mean". A block that gives the same for every
    image has no CKA: nan. Raises UserError for pairs of unequal length, or when no batch holds 4 images.
    """
    if tokens not in ("flat", "mean"):
        raise UserError(f'cka: tokens is "{tokens}"; give "flat" or "mean"')
    sums = MinibatchCKA()
    for batch in batches:
        images, theirs = _both(batch, other)
        rows = _grams(model, images, tokens)
        sums.add(rows, rows if other is None else _grams(other, theirs, tokens))
    values = sums.values()
    return Similarity(trunk(model), trunk(model if other is None else other), values, sums.images, sums.dropped)


def _both(batch: Tensor | Sequence[Tensor], other: nn.Module | None) -> Sequence[Tensor]:
    if isinstance(batch, Tensor):
        return batch, batch
    if other is None or len(batch) != 2 or batch[1].ndim != 4:
        raise UserError("cka: a batch is not images alone; give images, or with a second model pairs of images")
    if len(batch[0]) != len(batch[1]):
        raise UserError(f"cka: a pair has {len(batch[0])} and {len(batch[1])} images; both models must see the same")
    return batch


def _grams(model: nn.Module, images: Tensor, tokens: Tokens) -> Tensor:
    """The Gram matrices of all blocks of one pass: (L, n, n). Only they are kept."""
    grams: dict[str, Tensor] = {}

    def look(name: str, flow: Flow) -> None:
        whole = torch.cat([flow.prefix, flow.tokens], 1)
        grams[name] = gram(whole.flatten(1) if tokens == "flat" else whole.mean(1))

    with torch.no_grad(), tapped(model, look):
        model(images)
    return torch.stack([grams[name] for name in trunk(model)])
