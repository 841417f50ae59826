"""Images to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from vitrail.errors import UserError


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
        if height % self.patch_size or width % self.patch_size:
            p = self.patch_size
            raise UserError(
                f"img_size {height}x{width} is not divisible by the patch size {p}; "
                f"the nearest sizes are {max(height // p, 1) * p} and {(height // p + 1) * p}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)
