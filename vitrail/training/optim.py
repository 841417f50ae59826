"""The optimiser: which weights decay, how fast each layer learns, and by what rule they move."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from vitrail.recipe import Optim
from vitrail.training.adafactor import Adafactor

BLOCK = re.compile(
    r"(?:blocks|blocks_token_only|transformer\.h|transformer\.layers)\.\d+\."  # one row of blocks
    r"|(?:layers\.|stages\.|stage|layer|network\.)\d+\.(?:blocks\.)?\d+\."  # stages of blocks
    r"|trunk_output\.block\d+\.block\d+-\d+\."  # torchvision's RegNet
    r"|features\.\d+\.\d+\.(?=block|layer_scale)"  # torchvision's ConvNeXt and EfficientNet
)
"""How the names of a block's parameters begin, in all families."""


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimiser, over `parameter_groups(model, optim)`; a group's "lr" is to be set before each step.

    SGD's weight decay is coupled, as everywhere in PyTorch; that of the others is decoupled and scaled by lr.
    """
    groups = parameter_groups(model, optim)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    if optim.name == "adafactor":
        return Adafactor(groups, lr=optim.lr)
    # not fused: that form knows no sharded weights
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9, nesterov=optim.name == "sgd")


def parameter_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Groups with "params", "weight_decay" and "lr_scale" (a multiple of the learning rate), one for each pair of the
    two numbers, slow layers first; every parameter that needs a gradient is in one of them.

    Norms, biases and scales (one dimension), tokens and positions (`no_weight_decay()`) do not decay. `model` may hold
    the network as `.model`; what it adds to it learns like the head. The last layers are its `heads()`.
    """
    spared, numbers = _spared(model), layer_numbers(model)
    last = _last_layers(_network(model)[0])
    top = max(numbers.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, decay = optim.layer_decay ** (top - numbers[name]), optim.weight_decay
        if parameter in last:
            scale *= optim.head_lr
            decay = decay if optim.head_weight_decay is None else optim.head_weight_decay
        if parameter.ndim <= 1 or name in spared:
            decay = 0.0
        groups.setdefault((scale, -decay), []).append(parameter)
    return [
        {"params": groups[scale, decay], "weight_decay": -decay, "lr_scale": scale} for scale, decay in sorted(groups)
    ]


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of its layer: the stem 0, the blocks from 1 in order, the head last.

    As timm's param_groups_layer_decay has it: what lies between two blocks (downsampling) goes with the block that
    follows, the final norm with the last block (MAE: with the head), and what pools with the head. In a network
    without blocks every matrix or kernel opens a layer.
    """
    network, prefix = _network(model)
    head = str(getattr(network, "head_name", "head")).partition(".")[0]
    trunk = [name for name, _ in network.named_parameters() if not _with_head(name.partition(".")[0], head)]
    numbers = {prefix + name: number for name, number in (_by_block(trunk) or _by_matrix(network, trunk)).items()}
    last = max(numbers.values(), default=-1) + 1
    return {name: numbers.get(name, last) for name, _ in model.named_parameters()}


def _by_block(names: list[str]) -> dict[str, int]:
    """Stem 0, blocks from 1; empty where no name is that of a block."""
    block = {name: match[0] for name in names if (match := BLOCK.match(name))}
    number = {key: k for k, key in enumerate(dict.fromkeys(block.values()), 1)}
    stem = {*takewhile(lambda name: name not in block, names), *(name for name in names if name.startswith("pos_"))}
    numbers, following = {}, len(number)
    for name in reversed(names):
        following = number[block[name]] if name in block else following
        numbers[name] = 0 if name in stem else following
    return numbers if block else {}


def _by_matrix(network: nn.Module, names: list[str]) -> dict[str, int]:
    numbers, matrices = {}, 0
    for name in names:
        matrices += network.get_parameter(name).ndim > 1
        numbers[name] = max(matrices - 1, 0)
    return numbers


def _network(model: nn.Module) -> tuple[nn.Module, str]:
    """The network, and what its parameters' names begin with: `model` itself, or what a task holds as `.model`."""
    inner = getattr(model, "model", None)
    return (inner, "model.") if isinstance(inner, nn.Module) else (model, "")


def _with_head(part: str, head: str) -> bool:
    """Whether a part of the network comes after the final norm."""
    return part in (head, "fc_norm") or "head" in part or "pool" in part


def _last_layers(network: nn.Module) -> set[nn.Parameter]:
    layers: Any = network.heads() if hasattr(network, "heads") else []  # type: ignore[operator]
    return {parameter for layer in layers for parameter in layer.parameters()}


def _spared(model: nn.Module) -> set[str]:
    """Tokens, positions and temperatures, of the network and of what holds it."""
    network, prefix = _network(model)
    return {
        start + name
        for part, start in {network: prefix, model: ""}.items()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()  # type: ignore[operator]
    }
