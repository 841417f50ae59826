"""Training data-efficient image transformers & distillation through attention. Touvron et al., ICML 2021,
arXiv 2012.12877.

Idea      a ViT needs no 300 million images, but strong augmentation and a convnet teacher, heard through its own token.
Differs   from ViT: only in training; the distilled models add a distillation token after the class token, with its own
          position and its own head, which is taught by the teacher.
Shapes    (B,3,224,224) -> [class, distillation, patches] (B,198,D) -> two logits (B,K), averaged at inference
Lecture   training transformers on less data

Inference averages the two heads' logits, as the released code does (the paper adds the softmax outputs). While a
teacher is at work (`set_distilled_training(True)`) and the model trains, the pair is returned. Pico and nano have the
sizes of `vit_pico.py`: vitrail's own, for 32 x 32 images and the studies.

    variant                            params   FLOPs   top-1     ImageNet-1k from scratch (README of the release)
    deit_tiny_patch16_224                5.7M   1.25G    72.2
    deit_small_patch16_224              22.1M   4.60G    79.9
    deit_base_patch16_224               86.6M   17.6G    81.8
    deit_base_patch16_384               86.9M   55.5G    82.9
    deit_tiny_distilled_patch16_224      5.9M   1.26G    74.5
    deit_small_distilled_patch16_224    22.4M   4.62G    81.2
    deit_base_distilled_patch16_224     87.3M   17.7G    83.4
    deit_base_distilled_patch16_384     87.6M   55.6G    85.2
    deit_pico_patch4_32                  2.9M  187.9M       -
    deit_pico_distilled_patch4_32        3.1M  191.2M       -
    deit_nano_patch8_32                  417K    5.6M       -
    deit_nano_distilled_patch8_32        514K    6.0M       -
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.layers.blocks import init_truncated_normal
from vitrail.models import vit


@dataclass(frozen=True)
class Config(vit.Config):
    """ViT's, and whether there is a distillation token."""

    distilled: bool = False


PICO, NANO = (192, 9, 12), (96, 4, 3)

VARIANTS = {
    "deit_tiny_patch16_224": Config(16, 224, *vit.TINY),
    "deit_small_patch16_224": Config(16, 224, *vit.SMALL),
    "deit_base_patch16_224": Config(16, 224, *vit.BASE),
    "deit_base_patch16_384": Config(16, 384, *vit.BASE),
    "deit_tiny_distilled_patch16_224": Config(16, 224, *vit.TINY, distilled=True),
    "deit_small_distilled_patch16_224": Config(16, 224, *vit.SMALL, distilled=True),
    "deit_base_distilled_patch16_224": Config(16, 224, *vit.BASE, distilled=True),
    "deit_base_distilled_patch16_384": Config(16, 384, *vit.BASE, distilled=True),
    "deit_pico_patch4_32": Config(4, 32, *PICO, mlp_ratio=2.0),
    "deit_pico_distilled_patch4_32": Config(4, 32, *PICO, mlp_ratio=2.0, distilled=True),
    "deit_nano_patch8_32": Config(8, 32, *NANO, mlp_ratio=2.0),
    "deit_nano_distilled_patch8_32": Config(8, 32, *NANO, mlp_ratio=2.0, distilled=True),
}


def Model(config: Config) -> vit.Model:
    """The plain or the distilled model: images (B, C, H, W) -> logits (B, K)."""
    return DistilledModel(config) if config.distilled else PlainModel(config)


class PlainModel(vit.Model):
    """A ViT that starts from truncated normals everywhere, tokens and positions included."""

    def init_weights(self) -> None:
        """Deviation 0.02 for all, biases 0, as in the authors' release."""
        init_truncated_normal(self)
        for token in [self.pos_embed, *self.prefix_tokens()]:
            nn.init.trunc_normal_(token, std=0.02)


class DistilledModel(PlainModel):
    """A ViT with a distillation token and a second head."""

    num_prefix_tokens = 2

    def __init__(self, config: Config):
        super().__init__(config)
        self.distilled_training = False

    def make_tokens(self) -> None:
        """The class token, then the distillation token."""
        super().make_tokens()
        self.dist_token = nn.Parameter(torch.empty(1, 1, self.config.embed_dim))

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training returns the pair (class logits, distillation logits) instead of their mean."""
        self.distilled_training = enable

    def reset_classifier(self, num_classes: int) -> None:
        """Fresh heads for `num_classes` classes; 0 gives features instead of logits."""
        super().reset_classifier(num_classes)
        self.head_dist: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_truncated_normal(self.head_dist)

    def heads(self) -> list[nn.Module]:
        """That of the class token, then that of the distillation token."""
        return [self.head, self.head_dist]

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens or positions, not weights."""
        return super().no_weight_decay() | {"dist_token"}

    def prefix_tokens(self) -> list[Tensor]:
        """The class token, then the distillation token."""
        return [self.cls_token, self.dist_token]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, N, D) -> mean logits (B, K), the pair while distilling, or with `pre_logits` the tokens' mean (B, D)."""
        x, x_dist = tokens[:, 0], tokens[:, 1]
        if pre_logits:
            return (x + x_dist) / 2
        x, x_dist = self.head(x), self.head_dist(x_dist)
        return (x, x_dist) if self.distilled_training and self.training else (x + x_dist) / 2
