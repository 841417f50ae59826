"""Generative Pretraining from Pixels. Chen, Radford, Child, Wu, Jun, Dhariwal, Luan and Sutskever, ICML 2020 (the paper
has no arXiv number; its BERT objective is that of arXiv 1810.04805).

Idea      GPT-2 on pixels: a 32 x 32 image is a sequence of 1024 colours out of 512; a transformer that learns to
          predict the next one has features from which a linear layer tells the class.
Differs   from ViT: a token a pixel, an entry of a table of colours; causal attention; norms without mean and bias;
          GELU as x sigmoid(1.702 x); the best features are those of a middle block, not of the last.
Shapes    (B,3,32,32) -nearest of 512 colours-> (B,1024) -start, table, positions-> (B,1024,512) -24 blocks, norm->
          (B,1024,512) -> colours (B,1024,512); after `probe_layer` blocks: -mean-> (B,512) -> (B,K)
Lecture   self-supervised learning

Images are in [-1, 1]. `generative_loss(images)` is the objective: with `causal`, the next pixel, after a start token
that takes the last one's place; without, BERT's, which hides 15 % of the pixels and predicts them from all others.
`forward` is the linear probe: the mean over positions of what block `probe_layer` reads (after its norm), and a linear
layer; `probe_layer = depth` reads the last norm, as fine-tuning does (its loss: class plus generative). Choose the
layer on held-out images; the middle is a guess. A model built with `generative=False` has no layer for colours, which
a classifier would leave without a gradient.

`clusters` holds the colours: an even grid until the official ones (k-means on ImageNet, the list `clusters` in the
hub's processor configuration) are copied in; it is saved with the weights. The authors' matrices have no biases;
those of the hub's layout, which is ours, are zero in converted weights. Sizes 48 and 64 were not released.

    variant            params   FLOPs   top-1     linear probe on ImageNet-1k; params with head and colours,
    igpt_small_32       77.2M   51.5G       -     FLOPs up to the probed layer
    igpt_medium_32     456.5M  270.6G       -
    igpt_large_32     1364.5M  773.1G    60.3
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.layers.attention import Places, attend, place
from vitrail.layers.blocks import QuickGELU
from vitrail.layers.tokens import only_size
from vitrail.models.protocol import Classifier

COLOURS = 512
HIDDEN_SHARE = 0.15  # of the pixels, in BERT's objective


@dataclass(frozen=True)
class Config:
    """The released sizes. `causal` and `generative`: see above."""

    embed_dim: int
    depth: int
    num_heads: int
    probe_layer: int
    causal: bool = True
    generative: bool = True
    img_size: int = 32
    in_chans: int = 3
    num_classes: int = 1000


VARIANTS = {
    "igpt_small_32": Config(512, 24, 8, probe_layer=12),
    "igpt_medium_32": Config(1024, 36, 8, probe_layer=18),
    "igpt_large_32": Config(1536, 48, 16, probe_layer=24),
}


def even_colours(channels: int) -> Tensor:
    """The finest even grid over [-1, 1]^channels of at most 512 colours, 8 x 8 x 8 for RGB: (colours, channels)."""
    levels = next(n for n in range(COLOURS, 0, -1) if n**channels <= COLOURS)
    axis = torch.linspace(-1, 1, levels)
    return torch.cartesian_prod(*[axis] * channels).view(-1, channels)


class Dense(nn.Module):
    """A linear layer whose weight is (in, out), as the release stores it: (..., in) -> (..., out)."""

    def __init__(self, dim: int, out: int, std: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, out))
        self.bias = nn.Parameter(torch.zeros(out))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class PixelAttention(nn.Module):
    """Self-attention under `mask` (N, N), True where a query may look, or among all: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: Config):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.side = config.img_size
        self.c_attn = Dense(dim, 3 * dim, std=dim**-0.5)
        self.c_proj = Dense(dim, dim, std=(dim * config.depth) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        x = attend(q, k, v, site=self, bias=mask)
        if mask is not None:
            place(self, self.places)
        return self.c_proj(x.transpose(1, 2).flatten(2))

    def places(self) -> Places:
        """A causal query lies where the pixel is that it predicts; its key is the pixel before, the first one none."""
        order = torch.arange(self.side**2)
        grid = self.side, self.side
        return Places(order[None], order[None, None] - 1, grid, (grid,))


class PixelBlock(nn.Module):
    """x + attn(ln_1(x)), then the same with the MLP: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: Config):
        super().__init__()
        dim = config.embed_dim
        self.ln_1 = nn.RMSNorm(dim, eps=1e-5)
        self.attn = PixelAttention(config)
        self.ln_2 = nn.RMSNorm(dim, eps=1e-5)
        parts = {"c_fc": Dense(dim, 4 * dim, std=0.02), "act": QuickGELU(), "c_proj": Dense(4 * dim, dim, std=0.02)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class PixelTransformer(nn.Module):
    """Colours (B, N) -> what block `layer` reads after its norm, or the last norm, (B, N, D)."""

    mask: Tensor | None

    def __init__(self, config: Config):
        super().__init__()
        length = config.img_size**2
        self.wte = nn.Embedding(COLOURS + 1, config.embed_dim)  # the last entry is the start token
        self.wpe = nn.Embedding(length, config.embed_dim)
        self.h = nn.ModuleList([PixelBlock(config) for _ in range(config.depth)])
        self.ln_f = nn.RMSNorm(config.embed_dim, eps=1e-5)
        causal = torch.ones(length, length, dtype=torch.bool).tril() if config.causal else None
        self.register_buffer("mask", causal, persistent=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.01)

    def forward(self, colours: Tensor, layer: int, hidden: Tensor | None = None) -> Tensor:
        if self.mask is not None:
            colours = torch.cat([torch.full_like(colours[:, :1], COLOURS), colours[:, :-1]], dim=1)
        x = self.wte(colours)
        if hidden is not None:
            x = x.masked_fill(hidden[:, :, None], 0.0)
        x = x + self.wpe.weight
        for block in self.h[:layer]:
            x = block(x, self.mask)
        return self.h[layer].get_submodule("ln_1")(x) if layer < len(self.h) else self.ln_f(x)


class Model(Classifier):
    """iGPT: images (B, C, S, S) in [-1, 1] -> logits (B, K) of a linear probe.

    Raises UserError for images of another size than `img_size`, each of whose pixels has a position.
    """

    blocks_are = r"transformer\.h\.\d+"
    num_prefix_tokens = 0
    release_keys: tuple[tuple[str, str], ...] = (
        (r"transformer\.h\.\d+\.attn\.(?:masked_)?bias", ""),
    )  # older files hold the mask
    clusters: Tensor

    def __init__(self, config: Config):
        super().__init__()
        dim = config.embed_dim
        if dim % config.num_heads:
            raise UserError(f"embed_dim {dim} is not divisible by num_heads {config.num_heads}; change one of them")
        if not 1 <= config.probe_layer <= config.depth:
            raise UserError(f"probe_layer is {config.probe_layer}; it must be 1 to {config.depth}, the depth")
        self.config = config
        self.num_features = dim
        self.grid = config.img_size, config.img_size
        self.register_buffer("clusters", even_colours(config.in_chans))
        self.transformer = PixelTransformer(config)
        self.lm_head: nn.Module = nn.Identity()
        if config.generative:
            self.lm_head = nn.Linear(dim, COLOURS, bias=False)
            self.init_head(self.lm_head)
        else:
            self.release_keys = (*type(self).release_keys, (r"lm_head\.weight", ""))
        self.reset_classifier(config.num_classes)

    def init_head(self, head: nn.Module) -> None:
        """Zero: all classes, and all colours, are equal at first."""
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def no_weight_decay(self) -> set[str]:
        """The tables of colours and positions."""
        return {"transformer.wte.weight", "transformer.wpe.weight"}

    def quantise(self, images: Tensor) -> Tensor:
        """The nearest colour of every pixel in reading order: (B, C, S, S) -> (B, S * S), indices of `clusters`."""
        height, width = images.shape[-2:]
        only_size(height, width, self.config.img_size, "every pixel has a learned position")
        pixels, clusters = images.detach().flatten(2).float(), self.clusters.float()
        distances = torch.zeros_like(pixels[:, 0, :, None])
        for channel in range(pixels.shape[1]):  # not by a matrix product: in low precision it chooses other colours
            distances = distances + (pixels[:, channel, :, None] - clusters[:, channel]) ** 2
        return distances.argmin(dim=2)

    def features(self, images: Tensor, layer: int) -> Tensor:
        """What block `layer` (0 to depth) reads after its norm, (B, C, S, S) -> (B, N, D); depth: the last norm."""
        return self.transformer(self.quantise(images), layer)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, N, D): the features of `probe_layer`."""
        return self.features(images, self.config.probe_layer)

    def pool(self, tokens: Tensor) -> Tensor:
        """The mean over positions, (B, D)."""
        return tokens.mean(dim=1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """One map: the features of `probe_layer` as a picture, (B, D, S, S)."""
        return [self.forward_features(images).transpose(1, 2).unflatten(2, self.grid)]

    def colour_logits(self, colours: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Predictions of all pixels: colours (B, N), and where they are hidden (B, N) or None -> (B, N, 512)."""
        if not self.config.generative:
            raise UserError(
                "this model was built without the layer that predicts colours; build it with generative=True"
            )
        return self.lm_head(self.transformer(colours, self.config.depth, hidden))

    def generative_loss(self, images: Tensor) -> Tensor:
        """The objective: the mean over pixels, BERT's over those it draws to hide, of -log p(colour), in nats."""
        colours = self.quantise(images)
        if self.config.causal:
            return F.cross_entropy(self.colour_logits(colours).transpose(1, 2), colours)
        return self.bert_loss(colours, torch.rand(colours.shape, device=colours.device) < HIDDEN_SHARE)

    def bert_loss(self, colours: Tensor, hidden: Tensor) -> Tensor:
        """BERT's, for a model that is not causal: -log p of the colours where `hidden` (B, N), each image's mean."""
        losses = F.cross_entropy(self.colour_logits(colours, hidden).transpose(1, 2), colours, reduction="none")
        return ((losses * hidden).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)).mean()
