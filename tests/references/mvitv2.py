"""timm's MultiScaleVit; with a class token torchvision's MViT of one frame, because timm adds a query to that token."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig

from references import Reference, called
from references.mvit import as_torchvision, of_one_frame, stage_ends, torchvision_key


def build(model: nn.Module, _name: str, size: tuple[int, int]) -> Reference:
    """The library that does as the authors do."""
    return with_class_token(model, size) if model.config.use_cls_token else without(model, size)


def without(model: nn.Module, size: tuple[int, int]) -> Reference:
    """timm takes one square size, so its tables are interpolated to those that it would have for these sides."""
    config = model.config
    settings = MultiScaleVitCfg(
        depths=config.depths, embed_dim=config.embed_dim, num_heads=config.num_heads, expand_attn=config.expand_attn
    )

    def timms(side: int, device: str) -> nn.Module:
        sizes = {"num_classes": model.num_classes, "in_chans": config.in_chans, "img_size": side}
        return MultiScaleVit(settings, **sizes, device=device)

    tables = {"rel_pos_h": timms(size[0], "meta").state_dict(), "rel_pos_w": timms(size[1], "meta").state_dict()}

    def rename(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        theirs = dict(parameters)
        for key, table in parameters.items():
            if "rel_pos" in key:
                length = len(tables[key.rpartition(".")[2]][key])
                theirs[key] = F.interpolate(table.T[None], size=length, mode="linear")[0].T
        return theirs

    other = timms(size[0], "cpu").train(model.training)
    assert other.state_dict().keys() == model.state_dict().keys()
    return called(other, rename)


def with_class_token(model: nn.Module, size: tuple[int, int]) -> Reference:
    """torchvision has a table for time too (zero), and interpolates those of rows and columns by itself."""
    config = model.config
    ends = stage_ends(config.depths)
    settings, width = [], config.embed_dim
    for block in range(ends[-1]):
        stage = sum(block >= end for end in ends)
        first = block in ends[:-1]
        out = config.embed_dim * 2**stage
        settings.append(
            MSBlockConfig(
                num_heads=config.num_heads * 2**stage,
                input_channels=width,
                output_channels=out,
                kernel_q=[1, 3, 3],
                kernel_kv=[1, 3, 3],
                stride_q=[1, 2, 2] if first else [1, 1, 1],
                stride_kv=[1, *[(4, 2, 1, 1)[stage]] * 2],
            )
        )
        width = out
    other = of_one_frame(model, size, settings, residual_pool=True, rel_pos_embed=True, proj_after_attn=True)
    starts = [0, *ends[:-1]]

    def rename(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        theirs = {}
        for key, value in parameters.items():
            found = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", key)
            if found:
                key = f"blocks.{starts[int(found[1])] + int(found[2])}.{found[3]}"
            theirs[torchvision_key(key)] = value
        now = torch.zeros_like(parameters["stages.0.blocks.0.attn.rel_pos_h"][:1])
        theirs |= {f"blocks.{block}.attn.rel_pos_t": now for block in range(ends[-1])}
        return as_torchvision(theirs)

    return called(other, rename)
