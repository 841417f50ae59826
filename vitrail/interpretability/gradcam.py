"""Grad-CAM. Visual Explanations from Deep Networks via Gradient-based Localization. Selvaraju et al., ICCV 2017,
arXiv 1610.02391.

Idea      weight each channel of the last feature map by the mean gradient of the class's logit, add the channels up,
          keep what speaks for the class.
For ViTs  the features are the last block's `norm1` output without prefix tokens. At the block's output the patches
          have no gradient at all: only the class token reaches the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability.attention import to_grid


def gradcam(model: nn.Module, images: Tensor, *, target: Tensor | int | None = None) -> Tensor:
    """What speaks for class `target` in `images` (B, C, H, W), normalised: (B, gh, gw), at least 0, not scaled.

    `target` is one class, one for each image (B,), or None for the predicted one. A map is all zero where nothing
    speaks for the class. Raises UserError for a model with neither a feature map nor blocks that start with `norm1`.
    """
    with torch.enable_grad():
        features, logits = _tokens(model, images) if _is_transformer(model) else _feature_map(model, images)
        score = logits.gather(1, _target(target, logits)).sum()
        (gradients,) = torch.autograd.grad(score, features)
    return weigh(features.detach(), gradients)


def weigh(features: Tensor, gradients: Tensor) -> Tensor:
    """relu(sum over channels of mean gradient times feature): (B, C, gh, gw) twice -> (B, gh, gw)."""
    weights = gradients.mean((-2, -1), keepdim=True)
    return (weights * features).sum(1).relu()


def _is_transformer(model: nn.Module) -> bool:
    blocks = getattr(model, "blocks", None)
    return isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "norm1")


def _feature_map(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features = model.forward_features(images)  # type: ignore[operator]  # timm's protocol
    if features.ndim != 4:
        title = type(model).__module__.rsplit(".", 1)[-1]
        raise UserError(f"gradcam is not available for {title} because it has no feature map; use rollout")
    features.requires_grad_()
    return features, model.forward_head(features)  # type: ignore[operator]


def _tokens(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    grids: list[Tensor] = []

    def split(_module: nn.Module, _inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        """Cut the graph below: the patches, as a feature map, become its leaf."""
        prefix = getattr(model, "num_prefix_tokens", 0)
        grid = to_grid(tokens.detach().mT, model, images).requires_grad_()
        grids.append(grid)
        return torch.cat([tokens[:, :prefix], grid.flatten(2).mT], dim=1)

    hook = model.blocks[-1].norm1.register_forward_hook(split)  # type: ignore[union-attr, index]
    try:
        logits = model(images)
    finally:
        hook.remove()
    return grids[0], logits


def _target(target: Tensor | int | None, logits: Tensor) -> Tensor:
    if target is None:
        return logits.argmax(1, keepdim=True)
    return torch.as_tensor(target, device=logits.device).expand(len(logits)).unsqueeze(1)
