"""Patches Are All You Need? Asher Trockman and J. Zico Kolter, TMLR 2023, arXiv 2201.09792.

Idea      keep the patches and the constant resolution of a ViT, mix with nothing but convolutions: a wide depthwise
          one across positions, a pointwise one across channels.
Differs   from MLP-Mixer: positions are mixed by a k x k neighbourhood with shared weights, so any size of image goes;
          batch norm after the activation; only the depthwise half is residual.
Shapes    (B,3,224,224) -patch 7-> (B,1536,32,32) -20 blocks-> (B,1536,32,32) -mean-> (B,1536) -> (B,K)
Lecture   without attention

Rows and columns that fill no patch are left out (right and below, fewer than `patch_size`), as in the authors' code.
768/32 was trained with ReLU, the others with GELU. 128/4 is vitrail's own size, for 32 x 32 images and the studies.

    variant                        params   FLOPs   top-1     ImageNet-1k from scratch, as timm evaluates the release
    convmixer_1536_20               51.6M   51.1G   81.38
    convmixer_768_32                21.1M   20.7G   80.16
    convmixer_1024_20_ks9_p14       24.4M   5.95G   76.94
    convmixer_128_4_ks3_p4           209K   5.01M       -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What Table 1 varies: width h, depth d, kernel k, patch p and the activation."""

    embed_dim: int
    depth: int
    kernel_size: int = 9
    patch_size: int = 7
    act: Literal["gelu", "relu"] = "gelu"
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "convmixer_1536_20": Config(1536, 20),
    "convmixer_768_32": Config(768, 32, kernel_size=7, act="relu"),
    "convmixer_1024_20_ks9_p14": Config(1024, 20, patch_size=14),
    "convmixer_128_4_ks3_p4": Config(128, 4, kernel_size=3, patch_size=4, img_size=32),
}

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Model(Classifier):
    """ConvMixer: images (B, C, H, W), normalised, -> logits (B, K). Raises UserError for images below one patch."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim = self.num_features = config.embed_dim
        self.check(config.img_size, config.img_size)
        patches = nn.Conv2d(config.in_chans, dim, kernel_size=config.patch_size, stride=config.patch_size)
        self.stem = nn.Sequential(*self.activated(patches))
        self.blocks = nn.Sequential(*[self.make_block() for _ in range(config.depth)])
        self.reset_classifier(config.num_classes)
        self.release_keys = (  # the release is one nn.Sequential: stem, blocks, pooling, flattening, linear layer
            (r"([02])\.(weight|bias|running_\w+|num_\w+)", r"stem.\1.\2"),
            *((rf"{3 + i}\.(\d\..+)", rf"blocks.{i}.\1") for i in range(config.depth)),
            (rf"{5 + config.depth}\.(weight|bias)", r"head.\1"),
        )

    def make_block(self) -> nn.Sequential:
        """Depthwise half, residual, then pointwise half: (B, D, H, W) -> (B, D, H, W)."""
        dim, kernel = self.config.embed_dim, self.config.kernel_size
        depthwise = self.activated(nn.Conv2d(dim, dim, kernel_size=kernel, groups=dim, padding="same"))
        pointwise = self.activated(nn.Conv2d(dim, dim, kernel_size=1))
        return nn.Sequential(Residual(nn.Sequential(*depthwise)), *pointwise)

    def activated(self, conv: nn.Conv2d) -> list[nn.Module]:
        """A convolution, the activation, then the norm: in this order (section 2)."""
        return [conv, ACTIVATIONS[self.config.act](), nn.BatchNorm2d(conv.out_channels)]

    def init_head(self, head: nn.Module) -> None:
        """As torch draws a linear layer, like all other layers here."""

    def check(self, height: int, width: int) -> None:
        """Raise UserError where not even one patch fits."""
        patch = self.config.patch_size
        if min(height, width) < patch:
            raise UserError(f"img_size {height}x{width} is less than one patch; give at least {patch}x{patch}")

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/P, W/P), rounded down."""
        self.check(*images.shape[-2:])
        return self.blocks(self.stem(images))

    def pool(self, features: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return features.mean(dim=(2, 3))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: that of the last block, (B, D, H/P, W/P)."""
        return [self.forward_features(images)]
