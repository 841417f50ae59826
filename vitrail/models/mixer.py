"""MLP-Mixer: An all-MLP Architecture for Vision. Tolstikhin, Houlsby, Kolesnikov, Beyer et al., NeurIPS 2021,
arXiv 2105.01601.

Idea      two MLPs in turn: one mixes the tokens of a channel, one the channels of a token; no attention.
Differs   from ViT: an MLP across tokens in place of attention, hence no position embedding (each token has its own
          weights) and one fixed number of tokens; the mean over tokens instead of a class token.
Shapes    (B,3,224,224) -patch 16-> (B,196,768) -12 blocks-> (B,196,768) -mean-> (B,768) -> (B,K)
Lecture   without attention

GELU is exact, as in timm; the authors' Flax code has the tanh approximation. The head starts at zero. H/14 is the
paper's, without released weights; pico and nano are vitrail's own sizes, for the studies. The paper's parameter counts
leave the head out; these have it, for 1000 classes.

    variant               params   FLOPs   top-1     ImageNet-1k weights as timm evaluates them
    mixer_s32_224          19.1M   1.00G       -
    mixer_s16_224          18.5M   3.78G       -
    mixer_b32_224          60.3M   3.24G       -
    mixer_b16_224          59.9M   12.6G    76.6
    mixer_l32_224         206.9M  11.25G       -
    mixer_l16_224         208.2M   44.6G    72.1
    mixer_h14_224         432.4M  121.0G       -
    mixer_pico4_32          3.0M  191.9M       -
    mixer_nano8_32          420K    5.7M       -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitrail.layers.blocks import DropPath, Mlp, residual
from vitrail.layers.tokens import PatchEmbed, only_size
from vitrail.models.protocol import Classifier


@dataclass(frozen=True)
class Config:
    """What Table 1 varies. The token MLP is embed_dim / 2 wide, the channel MLP 4 embed_dim."""

    patch_size: int
    depth: int
    embed_dim: int
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0


VARIANTS = {
    "mixer_s32_224": Config(32, 8, 512),
    "mixer_s16_224": Config(16, 8, 512),
    "mixer_b32_224": Config(32, 12, 768),
    "mixer_b16_224": Config(16, 12, 768),
    "mixer_l32_224": Config(32, 24, 1024),
    "mixer_l16_224": Config(16, 24, 1024),
    "mixer_h14_224": Config(14, 32, 1280),
    "mixer_pico4_32": Config(4, 9, 192, 32),
    "mixer_nano8_32": Config(8, 4, 96, 32),
}


class MixerBlock(nn.Module):
    """x + tokens(norm1(x)), then x + channels(norm2(x)): (B, N, D) -> (B, N, D) for one N."""

    def __init__(self, dim: int, num_tokens: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens = Mlp(num_tokens, dim // 2)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = residual(x, lambda x: self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2), self.drop_path)
        return residual(x, lambda x: self.mlp_channels(self.norm2(x)), self.drop_path)


class TokenMixer(Classifier):
    """Patches, blocks of one kind, a norm, the mean: images (B, C, S, S), normalised, -> logits (B, K).

    What the all-MLP papers share; a paper says its block in `make_block`. Raises UserError for images of another size
    than `config.img_size`, since the weights across tokens fit one number of tokens.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.num_features = config.embed_dim
        self.stem = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim)
        self.grid = self.stem.grid(config.img_size, config.img_size)
        self.blocks = nn.Sequential(*[self.make_block(self.grid[0] * self.grid[1]) for _ in range(config.depth)])
        self.norm = self.make_norm()
        self.init_weights()
        self.reset_classifier(config.num_classes)

    def make_block(self, num_tokens: int) -> nn.Module:
        """One block: (B, num_tokens, D) -> (B, num_tokens, D)."""
        return MixerBlock(self.config.embed_dim, num_tokens, self.config.drop_path_rate)

    def make_norm(self) -> nn.Module:
        """The last norm, (B, N, D) -> (B, N, D)."""
        return nn.LayerNorm(self.config.embed_dim, eps=1e-6)

    def init_weights(self) -> None:
        """Flax's default, the authors' code: weights from normals by their fan-in, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def init_head(self, head: nn.Module) -> None:
        """Zero: all classes are equal at first."""
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, N, D): all tokens after the last block and norm."""
        height, width = images.shape[-2:]
        only_size(height, width, self.config.img_size, "its weights across tokens fit one number of tokens")
        return self.norm(self.blocks(self.stem(images)))

    def pool(self, tokens: Tensor) -> Tensor:
        """The mean over tokens, (B, D)."""
        return tokens.mean(dim=1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the tokens of the last layer as a picture, (B, D, H/P, W/P)."""
        return [self.forward_features(images).transpose(1, 2).unflatten(2, self.grid)]


class Model(TokenMixer):
    """MLP-Mixer: images (B, C, S, S), normalised, -> logits (B, K)."""

    release_keys = (  # of the Flax arrays, from "stem/kernel" to "MixerBlock_0/token_mixing/Dense_0/bias"
        (r"stem/(.+)", r"stem.proj.\1"),
        (r"MixerBlock_(\d+)/LayerNorm_0/(.+)", r"blocks.\1.norm1.\2"),
        (r"MixerBlock_(\d+)/LayerNorm_1/(.+)", r"blocks.\1.norm2.\2"),
        (r"MixerBlock_(\d+)/token_mixing/Dense_0/(.+)", r"blocks.\1.mlp_tokens.fc1.\2"),
        (r"MixerBlock_(\d+)/token_mixing/Dense_1/(.+)", r"blocks.\1.mlp_tokens.fc2.\2"),
        (r"MixerBlock_(\d+)/channel_mixing/Dense_0/(.+)", r"blocks.\1.mlp_channels.fc1.\2"),
        (r"MixerBlock_(\d+)/channel_mixing/Dense_1/(.+)", r"blocks.\1.mlp_channels.fc2.\2"),
        (r"pre_head_layer_norm/(.+)", r"norm.\1"),
    )
