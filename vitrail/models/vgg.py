"""Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan and Zisserman, ICLR 2015,
arXiv 1409.1556.

Idea      depth is what counts: stacks of 3 x 3 convolutions see as far as one large kernel, with fewer weights.
Differs   from AlexNet: only 3 x 3 convolutions, 8 to 16 of them, and a width that doubles after each pooling.
Shapes    (B,3,224,224) -> (B,64,112,112) -> (B,128,56,56) -> (B,256,28,28) -> (B,512,14,14) -> (B,512,7,7) -> (B,K)
Lecture   convolutional networks, the baseline

`depths` are columns A, B, D and E of the paper's Table 1; `_bn` adds batch normalisation after every convolution.

    variant     params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (FLOPs are multiply-adds)
    vgg11       132.9M   7.61G    69.0
    vgg11_bn    132.9M   7.61G    70.4
    vgg13       133.0M   11.3G    69.9
    vgg13_bn    133.1M   11.3G    71.6
    vgg16       138.4M   15.5G    71.6
    vgg16_bn    138.4M   15.5G    73.4
    vgg19       143.7M   19.6G    72.4
    vgg19_bn    143.7M   19.6G    74.2
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torchvision.models import VGG
from torchvision.models.vgg import make_layers

from vitrail.models.torchvision_cnn import FeaturesCNN

WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Config:
    """Convolutions in each of the five stages; `drop_rate` is the dropout after the classifier's hidden layers."""

    depths: tuple[int, ...]
    batch_norm: bool = False
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.5


VARIANTS = {
    "vgg11": Config((1, 1, 2, 2, 2)),
    "vgg11_bn": Config((1, 1, 2, 2, 2), batch_norm=True),
    "vgg13": Config((2, 2, 2, 2, 2)),
    "vgg13_bn": Config((2, 2, 2, 2, 2), batch_norm=True),
    "vgg16": Config((2, 2, 3, 3, 3)),
    "vgg16_bn": Config((2, 2, 3, 3, 3), batch_norm=True),
    "vgg19": Config((2, 2, 4, 4, 4)),
    "vgg19_bn": Config((2, 2, 4, 4, 4), batch_norm=True),
}


class Model(FeaturesCNN, VGG):
    """VGG: images (B, C, H, W), normalised, -> logits (B, K). Images of 32 pixels a side or more."""

    head_name = "classifier.6"
    smallest = 32

    def __init__(self, config: Config):
        plan: list[str | int] = []
        for width, depth in zip(WIDTHS, config.depths, strict=True):
            plan += [*[width] * depth, "M"]
        super().__init__(make_layers(plan, config.batch_norm), max(config.num_classes, 1), dropout=config.drop_rate)
        self.taps = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)][1:]
        self.adapt(config)
