"""transformers' ImageGPT, which has our keys, with the colours found and the probe read here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

from references import Reference, called


class Probed(ImageGPTForCausalImageModeling):
    """Images -> logits of a linear layer on the mean of what the probed block reads."""

    def __init__(self, model: nn.Module):
        config = model.config
        settings = {"n_positions": config.img_size**2, "vocab_size": 513, "activation_function": "quick_gelu"}
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        sizes = {"n_embd": config.embed_dim, "n_layer": config.depth, "n_head": config.num_heads}
        super().__init__(ImageGPTConfig(**settings, **rates, **sizes))
        self.layer = config.probe_layer
        self.register_buffer("clusters", torch.empty_like(model.clusters))
        self.head = nn.Linear(config.embed_dim, model.num_classes)

    def started(self, images: Tensor) -> Tensor:
        """The start token and all colours but the last."""
        return torch.cat([torch.full((len(images), 1), 512), nearest(images, self.clusters)[:, :-1]], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        states = self.transformer(self.started(images), output_hidden_states=True, use_cache=False).hidden_states
        blocks = self.transformer.h
        read = blocks[self.layer].ln_1(states[self.layer]) if self.layer < len(blocks) else states[-1]
        return self.head(read.mean(dim=1))


def nearest(images: Tensor, clusters: Tensor) -> Tensor:
    """Indices (B, N) of the nearest colours, pixel by pixel, in double precision."""
    pixels = images.flatten(2).transpose(1, 2).double()
    return torch.stack(
        [torch.stack([((pixel - clusters.double()) ** 2).sum(1).argmin() for pixel in picture]) for picture in pixels]
    )


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    return called(Probed(model).train(model.training))
