"""Patch features as colours. DINOv2. Oquab et al., TMLR 2024, arXiv 2304.07193, figure 1; after DINOv3's notebook pca.

Idea      the three directions in which the features of all places of all images differ most become red, green and
          blue: places that the network takes for alike get one colour, across images.
Differs   from DINOv3's notebook: no mask of the foreground, which a classifier of its own finds; no whitening, colours
          run between percentiles instead; features as the block hands them on, before the last norm.
Caution   a component's sign and share of the variance are arbitrary to the eye: read `explained`. A few tokens of huge
          norm (large models without registers) take a component for themselves.
Cost      one pass, P D^2 + D^3 for P places of D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.still import evaluating
from vitrail.interpretability.stream import Flow, tapped, trunk

COLOURS = 3


class FeaturePCA(NamedTuple):
    """A picture an image, and how much of the features' variance it shows."""

    picture: NDArray[np.float32]
    """(B, gh, gw, 3) in [0, 1], the strongest component first; 0.5 everywhere where there is no such component."""
    explained: NDArray[np.float64]
    """(3,), shares of the variance."""


def feature_pca(model: nn.Module, images: Tensor, *, layer: int = -1) -> FeaturePCA:
    """The features of `images` (B, C, H, W), normalised, after the `layer`-th block (negative: from the top), as
    colours that mean the same in all of them. Prefix tokens are left out; the model is in eval mode meanwhile.

    Raises UserError for a block that does not exist.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: hooks would be traced
    names = trunk(model)
    if not -len(names) <= layer < len(names):
        raise UserError(f"feature_pca: there is no block {layer}; the model has blocks 0 to {len(names) - 1}")
    grids: list[Tensor] = []

    def keep(_name: str, flow: Flow) -> None:
        grids.append(flow.grid)

    with evaluating(model), torch.no_grad(), tapped(model, keep, [names[layer]]):
        model(images)
    places = grids[0].movedim(1, -1)  # (B, gh, gw, D)
    scores, explained = principal(places.flatten(0, 2))
    return FeaturePCA(colours(scores).reshape(*places.shape[:3], COLOURS), explained)


def principal(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first three principal components of (P, D): scores (P, 3) and their shares of the variance (3,).

    The largest loading of a component is positive. Components beyond the rank of the features are exactly 0.
    """
    centred = features.double()
    centred = centred - centred.mean(0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / len(centred))  # ascending
    values, vectors = values.flip(0)[:COLOURS], vectors.flip(1)[:, :COLOURS]
    total = (centred.square().sum() / len(centred)).clamp_min(torch.finfo(torch.float64).tiny)
    noise = 1e-12 * features.double().square().sum(1).mean()  # what rounding leaves of features that do not differ
    values = values.where(values > noise, 0)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    scores = centred @ (vectors * largest.sign() * (values > 0))
    absent = (0, COLOURS - len(values))  # fewer than three channels
    scores, shares = nn.functional.pad(scores, absent), nn.functional.pad(values / total, absent)
    return scores.cpu().numpy(), shares.cpu().numpy()


def colours(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each column of (P, 3) to [0, 1] from its 1st to its 99th percentile; a column without differences is 0.5."""
    low, high = np.percentile(scores, (1, 99), axis=0)
    spread = np.where(high > low, high - low, 1)
    return np.where(high > low, np.clip((scores - low) / spread, 0, 1), 0.5).astype(np.float32)
