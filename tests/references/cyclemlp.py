"""CycleMLP with torchvision's deformable convolution, as the paper defines its layer: every channel has an offset."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from references import Reference


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Depths and widths as ours; maps are (B, D, H, W) throughout."""
    config = model.config

    def logits(p: dict[str, Tensor], images: Tensor) -> Tensor:
        x = F.conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=4, padding=2)
        for stage, depth in enumerate(config.depths):
            if stage:
                name = f"network.{2 * stage - 1}.proj"
                x = F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1)
            for i in range(depth):
                name = f"network.{2 * stage}.{i}"
                x = x + mixed(p, f"{name}.attn", norm(p, f"{name}.norm1", x))
                x = x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x))
        return F.linear(norm(p, "norm", x).mean(dim=(2, 3)), p["head.weight"], p["head.bias"])

    return logits


def mixed(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The three branches and their weights."""
    h, w = cycle(p, f"{name}.sfc_h", x, (0, 1)), cycle(p, f"{name}.sfc_w", x, (1, 0))
    c = pointwise(p, f"{name}.mlp_c", x)
    logits = mlp(p, f"{name}.reweight", (h + w + c).mean(dim=(2, 3), keepdim=True))
    shares = torch.softmax(logits.reshape(len(x), -1, 3), dim=2)[..., None, None]
    total = sum(branch * shares[:, :, k] for k, branch in enumerate((h, w, c)))
    return pointwise(p, f"{name}.proj", total)


def cycle(p: dict[str, Tensor], name: str, x: Tensor, direction: tuple[int, int]) -> Tensor:
    """Channel c from `direction` times (c + 1) mod 3 - 1 steps away."""
    steps = [(c + 1) % 3 - 1 for c in range(x.shape[1])]
    offsets = [step * along for step in steps for along in direction]
    offset = x.new_tensor(offsets)[None, :, None, None].expand(len(x), -1, *x.shape[2:])
    return deform_conv2d(x, offset, p[f"{name}.weight"], p[f"{name}.bias"])


def pointwise(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"][:, :, None, None], p.get(f"{name}.bias"))


def mlp(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return pointwise(p, f"{name}.fc2", F.gelu(pointwise(p, f"{name}.fc1", x)))


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    return x * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]
