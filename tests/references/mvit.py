"""torchvision's video MViT with one frame: its time axis has length 1, its row of temporal positions is zero."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from references import Reference, called


def build(model: nn.Module, _name: str, size: tuple[int, int]) -> Reference:
    """Widening in MLPs, absolute positions, queries pooled only where they stride."""
    config = model.config
    ends = stage_ends(config.depths)
    settings, width = [], config.embed_dim
    for block in range(sum(config.depths)):
        stage = sum(block >= end for end in ends)
        first, last = block in ends[:-1], block + 1 in ends[:-1]
        settings.append(
            MSBlockConfig(
                num_heads=config.num_heads * 2**stage,
                input_channels=width,
                output_channels=width * 2 if last else width,
                kernel_q=[1, 3, 3] if first else [],
                kernel_kv=[1, 3, 3],
                stride_q=[1, 2, 2] if first else [],
                stride_kv=[1, *[(4, 2, 1, 1)[stage]] * 2],
            )
        )
        width = settings[-1].output_channels
    other = of_one_frame(model, size, settings, residual_pool=False, rel_pos_embed=False, proj_after_attn=False)
    grid = (-(-size[0] // 4), -(-size[1] // 4))

    def rename(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        theirs = {torchvision_key(key): value for key, value in parameters.items()}
        table = theirs.pop("pos_embed")[0]
        theirs["pos_encoding.class_pos"] = table[0]
        theirs["pos_encoding.temporal_pos"] = table.new_zeros(1, table.shape[1])
        patches = table[1:].unflatten(0, model.grid)
        if grid != model.grid:
            image = patches.permute(2, 0, 1)[None]
            patches = F.interpolate(image, size=grid, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
        theirs["pos_encoding.spatial_pos"] = patches.flatten(0, 1)
        return as_torchvision(theirs)

    return called(other, rename)


def stage_ends(depths: tuple[int, ...]) -> list[int]:
    """The number of blocks up to the end of each stage."""
    return [sum(depths[: stage + 1]) for stage in range(len(depths))]


def of_one_frame(
    model: nn.Module,
    size: tuple[int, int],
    settings: list[MSBlockConfig],
    residual_pool: bool,
    rel_pos_embed: bool,
    proj_after_attn: bool,
) -> nn.Module:
    """torchvision's class for images of one size."""
    other = MViT(
        spatial_size=size,
        temporal_size=1,
        block_setting=settings,
        residual_pool=residual_pool,
        residual_with_cls_embed=False,
        rel_pos_embed=rel_pos_embed,
        proj_after_attn=proj_after_attn,
        dropout=0.0,
        num_classes=model.num_classes,
        patch_embed_kernel=(1, 7, 7),
        patch_embed_stride=(1, 4, 4),
        patch_embed_padding=(0, 3, 3),
    )
    return other.train(model.training)


def torchvision_key(key: str) -> str:
    """The name in torchvision of what both generations have."""
    for pattern, theirs in (
        (r"patch_embed\.proj", "conv_proj"),
        (r"(blocks\.\d+)\.(?:shortcut_)?proj(?:_attn)?", r"\1.project"),
        (r"attn\.proj\.", "attn.project.0."),
        (r"attn\.pool_([qkv])", r"attn.pool_\1.pool"),
        (r"attn\.norm_([qkv])", r"attn.pool_\1.norm_act.0"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"head\.\w+\.", "head.1."),
    ):
        key = re.sub(pattern, theirs, key)
    return key


def as_torchvision(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions with a time axis, the class token as a vector."""
    parameters["pos_encoding.class_token"] = parameters.pop("cls_token").flatten()
    return {key: value.unsqueeze(2) if value.ndim == 4 else value for key, value in parameters.items()}
