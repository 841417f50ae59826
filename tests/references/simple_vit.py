"""timm's VisionTransformer without its positions; the sine-cosine table is written out here, entry by entry."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from references import Reference, called, sizes


class Positioned(VisionTransformer):
    """timm's ViT with the table of big_vision between the patches and the blocks."""

    table: Tensor

    def _pos_embed(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2) + self.table


def build(model: nn.Module, _name: str, size: tuple[int, int]) -> Reference:
    """Every size as ours; the hidden layer of the head stands where timm has a norm."""
    config = model.config
    other = Positioned(
        **sizes(model),
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        pos_embed="none",
        dynamic_img_size=True,
    )
    other.table = table(size[0] // config.patch_size, size[1] // config.patch_size, config.embed_dim)
    if config.representation_size:
        hidden = nn.Linear(config.embed_dim, config.representation_size)
        other.fc_norm = nn.Sequential(OrderedDict(fc=hidden, act=nn.Tanh()))
    return called(other.train(model.training), lambda ours: {k.replace("pre_logits", "fc_norm"): ours[k] for k in ours})


def table(height: int, width: int, dim: int) -> Tensor:
    """(H*W, D) as big_vision's `posemb_sincos_2d` lists it, in double precision."""
    quarter = dim // 4
    rows = []
    for y in range(height):
        for x in range(width):
            omegas = [1 / 10000 ** (k / (quarter - 1)) for k in range(quarter)]
            rows.append(
                [math.sin(x * omega) for omega in omegas]
                + [math.cos(x * omega) for omega in omegas]
                + [math.sin(y * omega) for omega in omegas]
                + [math.cos(y * omega) for omega in omegas]
            )
    return torch.tensor(rows, dtype=torch.float64).float()
