"""Images to tokens, maps to windows, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import UserError


def divided(height: int, width: int, step: int, what: str) -> tuple[int, int]:
    """Steps down and across of a picture of these sides, in pixels. Raises UserError where `step` does not divide them.

    `what` names the step in the message: "patch size", "coarsest stride".
    """
    if height % step or width % step:
        raise UserError(
            f"img_size {height}x{width} is not divisible by the {what} {step}; "
            f"the nearest sizes are {max(height // step, 1) * step} and {(height // step + 1) * step}"
        )
    return height // step, width // step


def only_size(height: int, width: int, img_size: int, why: str) -> None:
    """Raise UserError unless the picture is the square that the model was built for; `why` says what is bound to it."""
    if (height, width) != (img_size, img_size):
        raise UserError(
            f"this model takes images of {img_size}x{img_size} pixels, not {height}x{width}, because {why}; "
            f"resize the images, or build it with the wanted img_size"
        )


def windows(x: Tensor, height: int, width: int) -> Tensor:
    """Cut maps (B, H, W, C) into windows of height x width, which divide H and W: -> (B * n, height * width, C).

    The windows of an image, and the positions in each, are in reading order.
    """
    x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # (B, H/h, h, W/w, w, C)
    return x.transpose(2, 3).reshape(-1, height * width, x.shape[-1])


def join_windows(x: Tensor, height: int, width: int, grid: tuple[int, int]) -> Tensor:
    """Undo `windows`: (B * n, height * width, C) -> (B, H, W, C) for a grid of H x W positions."""
    x = x.reshape(-1, grid[0] // height, grid[1] // width, height, width, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, *grid, x.shape[-1])


class PatchDropout(nn.Module):
    """A random part of the patches while training, the prefix tokens always: (B, T + N, D) -> (B, T + M, D).

    M = (1 - rate) N, rounded down, at least 1; each image loses others, and the order is lost too, since attention asks
    for none. PatchDropout, Liu et al., 2022, arXiv 2208.07220; FLIP, Li et al., 2022, arXiv 2212.00794.
    """

    def __init__(self, rate: float, num_prefix_tokens: int):
        super().__init__()
        self.rate, self.num_prefix_tokens = rate, num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        size, count = patches.shape[:2]
        kept = torch.randn(size, count, device=x.device).argsort(dim=1)[:, : max(1, int(count * (1.0 - self.rate)))]
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))
        return torch.cat([prefix, patches], dim=1)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class PatchEmbed(nn.Module):
    """Cut the image into P x P patches and project each, by one strided convolution: (B, C, H, W) -> (B, N, D).

    Tokens are in reading order, N = H/P * W/P. Raises UserError where a side is not divisible by P.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across of an image of these sides, in pixels."""
        return divided(height, width, self.patch_size, "patch size")

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)
