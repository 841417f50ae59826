"""timm's Swin, which takes other sizes when asked to."""

from __future__ import annotations

from torch import nn

from references import Reference, from_timm


def build(model: nn.Module, name: str, _size: tuple[int, int]) -> Reference:
    """Depths and image size as ours, masks by the size of the images; nano, which timm has not, by its sizes."""
    config = model.config
    changes = {"img_size": config.img_size, "depths": config.depths, "drop_path_rate": 0.0, "strict_img_size": False}
    if "nano" in name:
        name = "swin_tiny_patch4_window7_224"
        changes |= {key: getattr(config, key) for key in ("embed_dim", "num_heads", "window_size")}
    return from_timm(model, name, **changes)
