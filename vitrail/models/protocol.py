"""What every model answers, in timm's words, so that it drops into code written for timm."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from vitrail.layers.blocks import init_truncated_normal


class Classifier(nn.Module, ABC):
    """A backbone and one linear layer: images (B, C, H, W), normalised, -> logits (B, K).

    A family sets `config`, `num_features` and, with `reset_classifier(config.num_classes)`, the last layer; it provides
    `forward_features`, `pool` and `pyramid`. The rest follows.
    """

    head_name = "head"
    """Module path of the last linear layer. Not `classifier`: that is a module's name in some networks."""
    release_keys: tuple[tuple[str, str], ...] = ()
    """Where the authors' release names parts otherwise: (pattern of the whole name, ours); ours empty: left out."""
    blocks_are: str = r"blocks\.\d+"
    """The names of the modules whose outputs, one after another, are the network's residual stream: a pattern."""
    channels_last: bool = False
    """Whether a block gives maps (B, H', W', D) and not (B, D, H', W'); tokens (B, N, D) are as they are."""
    config: Any
    num_classes: int
    num_features: int

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> what the backbone computes: a map (B, D, H', W') or tokens (B, N, D), normalised last."""

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """The result of `forward_features` -> what the last layer reads, (B, num_features)."""

    @abstractmethod
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Maps (B, D, H/s, W/s) for dense tasks, finest first: strides s = 4 to 32, or the one scale there is."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """`features` -> logits (B, K), or with `pre_logits` what the last layer reads, (B, num_features)."""
        x = self.pool(features)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The last linear layer (Identity where there are no classes)."""
        return self.get_submodule(self.head_name)

    def trunk(self) -> list[str]:
        """Names of the blocks in the order of the pass, as far as they carry the whole picture on."""
        return [name for name, _ in self.named_modules() if re.fullmatch(self.blocks_are, name)]

    def heads(self) -> list[nn.Module]:
        """All last layers: what learns first, faster, or alone, when a trained model is given other classes."""
        return [self.get_classifier()]

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh last layer for `num_classes` classes; 0 gives features instead of logits."""
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.init_head(head)
        self.set_submodule(self.head_name, head)

    def init_head(self, head: nn.Module) -> None:
        """How the last layer starts: truncated normal of deviation 0.02, bias 0, unless the paper says otherwise."""
        init_truncated_normal(head)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens, positions or temperatures, not weights."""
        return set()
