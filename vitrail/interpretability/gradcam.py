"""Grad-CAM. Visual Explanations from Deep Networks via Gradient-based Localization. Selvaraju et al., ICCV 2017,
arXiv 1610.02391.

Idea      weight each channel of the last feature map by the mean gradient of the class's logit, add the channels up,
          keep what speaks for the class.
For ViTs  the features are the last tokens where the head averages them, else what the last attention reads: at the last
          block's output the patches have no gradient at all, because only the class token reaches the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.interpretability.attention import to_grid
from vitrail.interpretability.available import not_available
from vitrail.layers.attention import probing


def gradcam(model: nn.Module, images: Tensor, *, target: Tensor | int | None = None) -> Tensor:
    """What speaks for class `target` in `images` (B, C, H, W), normalised: (B, gh, gw), at least 0, not scaled.

    `target` is one class, one for each image (B,), or None for the predicted one. A map is all zero where nothing
    speaks for the class. Raises UserError for a model whose features are no map, and which has no attention either.
    """
    with torch.no_grad():
        features = model.forward_features(images)  # type: ignore[operator]  # timm's protocol
    tokens = features.ndim == 3
    with torch.enable_grad():
        if tokens and getattr(model, "num_prefix_tokens", 0):
            features, logits = _what_attention_reads(model, images)
        else:
            features = (to_grid(features.mT, model, images) if tokens else features).requires_grad_()
            logits = model.forward_head(features.flatten(2).mT if tokens else features)  # type: ignore[operator]
        score = logits.gather(1, class_of(target, logits)).sum()
        (gradients,) = torch.autograd.grad(score, features)
    return weigh(features.detach(), gradients)


def weigh(features: Tensor, gradients: Tensor) -> Tensor:
    """relu(sum over channels of mean gradient times feature): (B, C, gh, gw) twice -> (B, gh, gw)."""
    weights = gradients.mean((-2, -1), keepdim=True)
    return (weights * features).sum(1).relu()


def _what_attention_reads(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The patches before the last attention as a map (B, D, gh, gw), and the logits."""
    sites: list[nn.Module] = []
    grids: list[Tensor] = []

    def note(site: nn.Module, weights: Tensor) -> Tensor:
        sites.append(site)
        return weights

    def cut(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Cut the graph below: the patches, as a feature map, become its leaf."""
        prefix = model.num_prefix_tokens
        grid = to_grid(inputs[0].detach().mT, model, images).requires_grad_()
        grids.append(grid)
        return torch.cat([inputs[0][:, :prefix], grid.flatten(2).mT], dim=1), *inputs[1:]

    with torch.no_grad(), probing(note):
        model(images)
    if not sites:
        raise not_available("gradcam", model, "it has neither a feature map nor attention")
    hook = sites[-1].register_forward_pre_hook(cut)
    try:
        logits = model(images)
    finally:
        hook.remove()
    return grids[0], logits


def class_of(target: Tensor | int | None, logits: Tensor) -> Tensor:
    """The class to explain for each image, (B, 1): one for all, one each, or None for the predicted one."""
    if target is None:
        return logits.argmax(1, keepdim=True)
    return torch.as_tensor(target, device=logits.device).expand(len(logits)).unsqueeze(1)
