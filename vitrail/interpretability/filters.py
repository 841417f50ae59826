"""What the first layer looks for. An Image is Worth 16x16 Words. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929,
figure 7, left.

Idea      the filters of the patch projection, as pictures, and their principal components: trained, a basis of what a
          patch holds (plain colours, edges, checkers of rising frequency); untrained, noise with a flat spectrum.
Caution   a component's sign is arbitrary; here its value of largest size is positive. Filters are those stored: they
          act on normalised colours, a hybrid takes each one's mean off before it applies it, and shifted patches are
          scaled before theirs. Of a stem of several convolutions the first is seen, of shifted patches the unshifted.
Cost      one singular value decomposition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.models.sl_vit import Patches


class Filters(NamedTuple):
    """The filters of a first layer and what they are made of."""

    components: NDArray[np.float64]
    """(K, C, p, p): principal components of the filters, orthonormal, the strongest first."""
    shares: NDArray[np.float64]
    """(min(M, C p p),): each component's share of the filters' variance, of all of them; sums to 1."""
    filters: NDArray[np.float64]
    """(M, C, p, p)."""

    def reconstructed(self) -> NDArray[np.float64]:
        """The filters from their mean and the components kept: (M, C, p, p)."""
        mean, basis = self.filters.mean(0), self.components.reshape(len(self.components), -1)
        rows = (self.filters - mean).reshape(len(self.filters), -1)
        return (rows @ basis.T @ basis).reshape(self.filters.shape) + mean


def patch_filters(model: nn.Module, count: int = 28) -> Filters:
    """The filters of the layer that reads the image, and their first `count` components (28 in the paper), or all.

    Raises UserError for a model whose first layer is neither a convolution nor a linear map of patches.
    """
    if count < 1:
        raise UserError(f"patch_filters: count is {count}; ask for at least one component")
    filters = _first_layer(getattr(model, "_orig_mod", model)).detach().double().cpu().numpy()
    rows = filters.reshape(len(filters), -1)
    _, scales, basis = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    largest = np.abs(basis).argmax(1)
    basis = basis * np.sign(basis[np.arange(len(basis)), largest])[:, None]
    variance = scales**2
    shares = variance / max(variance.sum(), np.finfo(np.float64).tiny)
    return Filters(basis[:count].reshape(-1, *filters.shape[1:]), shares, filters)


def as_pictures(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Filters or components (K, C, p, p), of 1 or 3 channels -> pictures (K, p, p, 3) in [0, 1].

    Each has its own range, which its channels share, so that colours stay. A constant one is black.
    """
    channels = filters.shape[1]
    if channels not in (1, 3):
        raise UserError(f"filters of {channels} channels are no picture; grey ones have 1 channel, coloured ones 3")
    low, high = filters.min((1, 2, 3), keepdims=True), filters.max((1, 2, 3), keepdims=True)
    pictures = (filters - low) / np.where(high > low, high - low, 1)
    return np.broadcast_to(pictures, (len(filters), 3, *filters.shape[2:])).transpose(0, 2, 3, 1)


def _first_layer(model: Any) -> Tensor:
    """The weights that meet the image, (M, C, p, p)."""
    channels = model.config.in_chans
    for module in model.modules():
        parts = list(module.children())
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return module.weight
        if isinstance(module, nn.Sequential) and isinstance(parts[0], Patches) and isinstance(parts[-1], nn.Linear):
            side = parts[0].patch_size
            pixels = parts[-1].weight.unflatten(1, (side, side, -1))  # row, column, channel, as Patches cuts them
            return pixels.movedim(-1, 1)[:, :channels]  # the image comes before its shifts
    raise not_available("patch_filters", model, "no convolution and no linear map of patches reads the image")
