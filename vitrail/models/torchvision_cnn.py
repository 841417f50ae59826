"""What the CNN families share: torchvision's own networks behind timm's protocol.

A family subclasses torchvision's class, so its computation and state-dict keys are torchvision's to the letter; these
two classes add the protocol, another channel count and a head that can be replaced.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.models.protocol import Classifier


class CNN(Classifier):
    """A network that pools its last map and classifies it: images (B, C, H, W) -> logits (B, K).

    A family calls `adapt(config)` after torchvision's constructor, and provides `pyramid`.
    """

    avgpool: nn.Module
    smallest = 1
    """Least side of an image, in pixels, that leaves at least one position in the last map."""

    def adapt(self, config: Any) -> None:
        """Take over the configuration: image size checked, first convolution for `in_chans`, no head for 0 classes."""
        if config.img_size < self.smallest:
            raise UserError(
                f"img_size {config.img_size} is too small for {type(self).__module__.rpartition('.')[2]}, whose last "
                f"map would be empty; the smallest size is {self.smallest}"
            )
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = self.get_submodule(self.head_name).in_features  # type: ignore[assignment]
        if config.in_chans != 3:
            name, old = next((name, part) for name, part in self.named_modules() if isinstance(part, nn.Conv2d))
            bias, shape = old.bias is not None, (old.kernel_size, old.stride, old.padding)
            self.set_submodule(name, nn.Conv2d(config.in_chans, old.out_channels, *shape, bias=bias))  # type: ignore[arg-type]
            self.init_first_conv(self.get_submodule(name))
        if not config.num_classes:
            self.reset_classifier(0)

    def init_first_conv(self, conv: nn.Module) -> None:
        """Draw the first convolution's weights as torchvision draws those for three channels."""
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def init_head(self, head: nn.Module) -> None:
        """As torch draws a linear layer."""

    def pool(self, features: Tensor) -> Tensor:
        """The last map (B, C, H, W) -> what the last layer reads, (B, num_features)."""
        return self.avgpool(features).flatten(1)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map (B, D, H', W')."""
        return self.pyramid(images)[-1]


class FeaturesCNN(CNN):
    """A network in torchvision's older form: `features`, `avgpool`, and a `classifier` that ends in the head."""

    features: nn.Sequential
    classifier: nn.Sequential
    taps: list[int]
    """Indices in `features` after which the maps of `pyramid` are taken."""

    def pool(self, features: Tensor) -> Tensor:
        x = super().pool(features)
        for layer in list(self.classifier)[:-1]:
            x = layer(x)
        return x

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)

    def trunk(self) -> list[str]:
        """Where the network is no row of blocks: the poolings, each of which ends some convolutions."""
        poolings = [f"features.{i}" for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        return poolings or super().trunk()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps
