"""ImageNet Classification with Deep Convolutional Neural Networks. Krizhevsky, Sutskever and Hinton, NeurIPS 2012.
This is the one-column form of "One weird trick for parallelizing convolutional neural networks", Krizhevsky, 2014,
arXiv 1404.5997, as torchvision has it.

Idea      features learned end to end by a deep CNN on a GPU beat designed ones; ReLU and dropout make it trainable.
Differs   from LeNet: eight layers instead of five, ReLU instead of tanh, overlapping max-pooling, dropout.
Shapes    (B,3,224,224) -conv 11, stride 4-> (B,64,55,55) -> (B,192,27,27) -> (B,256,6,6) -> (B,4096) -> (B,K)
Lecture   convolutional networks, the baseline

    variant    params   FLOPs   top-1     torchvision's weights, ImageNet-1k, 224 x 224 (FLOPs are multiply-adds)
    alexnet     61.1M   0.71G    56.5
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torchvision.models import AlexNet

from vitrail.models.torchvision_cnn import FeaturesCNN


@dataclass(frozen=True)
class Config:
    """One size; `drop_rate` is the dropout before the two hidden layers of the classifier."""

    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.5


VARIANTS = {"alexnet": Config()}


class Model(FeaturesCNN, AlexNet):
    """AlexNet: images (B, C, H, W), normalised, -> logits (B, K). Images of 63 pixels a side or more."""

    head_name = "classifier.6"
    smallest = 63
    taps = [1, 4, 11, 12]  # after the ReLUs that end each resolution, and the last pooling

    def __init__(self, config: Config):
        super().__init__(max(config.num_classes, 1), config.drop_rate)
        self.adapt(config)

    def init_first_conv(self, conv: nn.Module) -> None:
        """torchvision leaves AlexNet at PyTorch's default, which the layer already has."""
