"""LambdaNetworks: Modeling Long-Range Interactions Without Attention. Bello, ICLR 2021, arXiv 2102.08602.

Idea      sum up what surrounds each position as a small matrix, a lambda, and apply it to the position's query: every
          position hears all others, and no map of positions by positions is formed.
Differs   from attention: the softmax is over positions of keys, once for all queries; from ResNet: each 3 x 3
          convolution is a lambda layer, and strides are 3 x 3 means after it.
Shapes    (B,3,224,224) -stem-> (B,64,56,56) -> (B,256,56,56) -> (B,512,28,28) -> (B,1024,14,14) -> (B,2048,7,7)
          -mean-> (B,2048) -> (B,K)
Lecture   without attention

`rel_size` is r, the side of the window that tells positions apart; contents are summed over the whole map. The paper's
table of offsets has no bias; the released weights (d-li14's, of lambda_resnet50) were trained with one, 16 numbers a
layer. Depths 26 and 38 are of that release. There are no attention maps: nothing is a distribution over tokens for
each query. The paper's larger models, with convolutions in early stages, are not here: their mix is not printed.

    variant                 params   FLOPs   top-1     ImageNet-1k; 78.2 is the released weights', 78.9 the paper's
    lambda_resnet26          10.1M   4.31G       -
    lambda_resnet38          12.0M   5.29G       -
    lambda_resnet50          15.0M   6.54G    78.2
    lambda_resnet50_u4_r7    16.0M   4.36G    78.9
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import normalised
from vitrail.models.attention_resnet import AttentionResNet, Grid


@dataclass(frozen=True)
class Config:
    """What Table 3 and section 5 vary: depths, and |k|, |h|, |u| and r of the layer.

    `base_width` is that inside the blocks of the first stage.
    """

    depths: tuple[int, int, int, int]
    dim_head: int = 16
    num_heads: int = 4
    intra_depth: int = 1
    rel_size: int = 23
    base_width: int = 64
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "lambda_resnet26": Config((2, 2, 2, 2)),
    "lambda_resnet38": Config((2, 3, 5, 2)),
    "lambda_resnet50": Config((3, 4, 6, 3)),
    "lambda_resnet50_u4_r7": Config((3, 4, 6, 3), intra_depth=4, rel_size=7),
}


def apply_lambdas(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """Queries (B, h, k, N), keys (B, u, k, N), values (B, u, v, N) -> (B, h * v, N) (figure 3).

    The lambda of a position is that of the contents, which all positions share, plus its own: `position` (B, k, v, N).
    """
    content = torch.einsum("bukn,buvn->bkv", normalised(k, -1), v)
    return torch.einsum("bhkn,bkvn->bhvn", q, position + content[..., None]).flatten(1, 2)


class LambdaLayer(nn.Module):
    """Lambda layer with a lambda convolution: (B, D, H, W) -> (B, D, ceil(H/stride), ceil(W/stride)) (section 3.2)."""

    def __init__(self, dim: int, stride: int, config: Config):
        super().__init__()
        heads, keys, depth, side = config.num_heads, config.dim_head, config.intra_depth, config.rel_size
        if dim % heads or side % 2 == 0:
            raise UserError(f"width {dim} must be divisible by num_heads {heads}, and rel_size {side} odd; change one")
        self.num_heads, self.intra_depth = heads, depth
        values = dim // heads * depth
        self.sizes = heads * keys, keys * depth, values
        self.conv_qkv = nn.Conv2d(dim, sum(self.sizes), kernel_size=1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * keys)
        self.norm_v = nn.BatchNorm2d(values)
        self.lambda_conv = nn.Conv3d(depth, keys, kernel_size=(1, side, side), padding=(0, side // 2, side // 2))
        self.avgpool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv_qkv(x).split(self.sizes, dim=1)
        q = self.norm_q(q).flatten(2).unflatten(1, (self.num_heads, -1))
        k = k.flatten(2).unflatten(1, (self.intra_depth, -1))
        v = self.norm_v(v).unflatten(1, (self.intra_depth, -1))  # (B, u, v, H, W)
        out = apply_lambdas(q, k, v.flatten(3), self.lambda_conv(v).flatten(3))
        return self.avgpool(out.unflatten(2, x.shape[-2:]))


class Model(AttentionResNet):
    """LambdaResNet: images (B, C, H, W), normalised, -> logits (B, K)."""

    def __init__(self, config: Config):
        def spatial(_stage: int, width: int, stride: int, _grid: Grid) -> nn.Module:
            return LambdaLayer(width, stride, config)

        super().__init__(config, spatial, width=config.base_width)
