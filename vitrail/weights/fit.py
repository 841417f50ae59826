"""Tensors of a checkpoint -> a model built for the wanted image size, channels and classes.

Three things may differ, and each is said in one line: the grid of positions (resized), the channels of the first
convolution (adapted), the classes (the head stays fresh). Everything else must match by name and shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UserError, did_you_mean
from vitrail.layers.position import resize_position
from vitrail.weights import files
from vitrail.weights.layouts import State, to_timm_keys
from vitrail.weights.official import official, table
from vitrail.weights.unfilled import unfilled

log = logging.getLogger("vitrail")


def load_weights(model: nn.Module, name: str, pretrained: bool | str | Path) -> None:
    """See `vitrail.weights.load_weights`."""
    where, state = trained(name, pretrained)
    fill(model, *fitted(state, model, name, where), where)


def build_with_weights(build: Callable[[], nn.Module], name: str, pretrained: bool | str | Path) -> nn.Module:
    """See `vitrail.weights.build_with_weights`."""
    where, state = trained(name, pretrained)
    with unfilled():
        model = build()
    found, notes = fitted(state, model, name, where)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    if any(value.data_ptr() in own for value in found.values()):  # a fresh head: drawn where it always was in turn
        model = build()
        found, notes = fitted(state, model, name, where)
    fill(model, found, notes, where)
    return model


def trained(name: str, pretrained: bool | str | Path) -> tuple[str, State]:
    """Where the weights come from, in words, and the tensors of their file."""
    if not isinstance(pretrained, bool):
        return str(pretrained), files.read_state_dict(pretrained)
    source = official(name)
    if source is None:
        raise UserError(f"{name} has no official weights; give the path of a file{did_you_mean(name, table())}")
    return source.source, files.read_state_dict(files.fetch(source))


def fitted(state: State, model: nn.Module, name: str, where: str) -> tuple[State, list[str]]:
    """The tensors as the model takes them, and what was changed, a sentence each."""
    state = to_timm_keys(state, model)
    notes: list[str] = []
    for fit in (fit_axes, fit_positions, fit_offsets, fit_channels, fit_heads):
        state = fit(state, model, notes)
    return checked(state, model, name, where), notes


def fill(model: nn.Module, state: State, notes: list[str], where: str) -> None:
    """Copy the tensors into the model, and say what was changed once it is true."""
    model.load_state_dict(state, strict=True)
    for note in notes:
        log.warning("%s: %s", where, note)


def fit_axes(state: State, model: nn.Module, _notes: list[str]) -> State:
    """Axes of length 1 as the model has them: releases write (D,) or (1, 1, D), and give images a time axis."""
    own = model.state_dict()
    return {
        key: value.reshape(own[key].shape) if key in own and squeezed(value) == squeezed(own[key]) else value
        for key, value in state.items()
    }


def squeezed(value: Tensor) -> list[int]:
    """The shape without its axes of length 1."""
    return [side for side in value.shape if side != 1]


def fit_positions(state: State, model: nn.Module, notes: list[str]) -> State:
    """The position table (1, T + g*g, D) for the model's grid, its T token entries kept."""
    own = model.state_dict()
    names = ("pos_embed", "patch_pos", "pos_embedding", "absolute_pos_embed")
    name = next((name for name in names if name in own and name in state), None)
    if name is None or state[name].shape == own[name].shape or state[name].shape[-1] != own[name].shape[-1]:
        return state
    grid: tuple[int, int] = model.grid  # type: ignore[assignment]
    prefix = own[name].shape[1] - grid[0] * grid[1]
    side = round(max(state[name].shape[1] - prefix, 0) ** 0.5)
    if side == 0 or side * side != state[name].shape[1] - prefix:
        return state  # other tokens, not another grid: for the strict check to name
    notes.append(f"position embedding resized from {side}x{side} to {grid[0]}x{grid[1]} patches")
    return {**state, name: resize_position(state[name], grid, prefix)}


def fit_offsets(state: State, model: nn.Module, notes: list[str]) -> State:
    """Tables by offset for the model's windows or grids: biases (l*l, h) bicubically, as Swin's authors do; vectors
    (l, d) of rows or columns linearly, as MViT's do."""
    own, resized = model.state_dict(), {}
    for key, old in state.items():
        if key.endswith(("rel_pos_h", "rel_pos_w")) and key in own and old.shape[1:] == own[key].shape[1:]:
            resized[key] = F.interpolate(old.T[None], size=len(own[key]), mode="linear")[0].T
        if not key.endswith("relative_position_bias_table") or key not in own or old.shape == own[key].shape:
            continue
        sides = [round(len(table) ** 0.5) for table in (old, own[key])]
        if [side * side for side in sides] == [len(old), len(own[key])] and old.shape[1:] == own[key].shape[1:]:
            resized[key] = resize_position(old[None], (sides[1], sides[1]), 0, (sides[0], sides[0]))[0]
    resized = {key: value for key, value in resized.items() if value.shape != state[key].shape}
    if resized:
        notes.append(f"{len(resized)} tables of relative positions resized")
    return {**state, **resized}


def fit_channels(state: State, model: nn.Module, notes: list[str]) -> State:
    """The first convolution's weights (D, C, k, k) for the model's channel count."""
    first = next(((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or f"{first[0]}.weight" not in state:
        return state
    key, old, new = f"{first[0]}.weight", state[f"{first[0]}.weight"], first[1].weight
    if old.ndim != 4 or old.shape[1] == new.shape[1] or old.shape[0] != new.shape[0] or old.shape[2:] != new.shape[2:]:
        return state
    notes.append(f"first convolution adapted from {old.shape[1]} to {new.shape[1]} channels")
    return {**state, key: adapt_channels(old, new.shape[1])}


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """(D, C, k, k) -> (D, in_chans, k, k): summed for one channel, else repeated and scaled, as timm adapts.

    A grey image in one channel gives the same result as in all C.
    """
    old = weight.shape[1]
    if in_chans == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-in_chans // old), 1, 1)[:, :in_chans]
    return (repeated * (old / in_chans)).to(weight.dtype)


def fit_heads(state: State, model: nn.Module, notes: list[str]) -> State:
    """Heads of another class count stay as the model drew them.

    So do heads that read a hidden layer (`pre_logits`) which the model does not have: it is left out, and without it
    their weights mean nothing.
    """
    own = model.state_dict()
    hidden = [key for key in state if key.startswith("pre_logits.") and key not in own]
    if hidden:
        notes.append("'pre_logits', the hidden layer of the pre-training head, is left out")
        state = {key: value for key, value in state.items() if key not in hidden}
    for head in head_names(model):
        weight, bias = f"{head}.weight", f"{head}.bias"
        had = len(state[weight]) if weight in state else 0
        wants = len(own[weight]) if weight in own else 0
        if had == wants and not (hidden and had):
            continue
        state = {key: value for key, value in state.items() if key not in (weight, bias)}
        state |= {key: own[key] for key in (weight, bias) if key in own}
        fate = f"starts fresh for {wants} classes" if wants else "is left out"
        notes.append(f"'{head}' {fate} (the checkpoint has {f'{had} classes' if had else 'none'})")
    return state


def head_names(model: nn.Module) -> list[str]:
    """Module paths of the model's last layers: one, or two for a distilled model.

    A model says so in `classifier`; torchvision's CNNs, which have a module of that name, in `head_name`.
    """
    name = getattr(model, "head_name", None) or model.classifier
    return [str(name), *(["head_dist"] if hasattr(model, "head_dist") else [])]


def checked(state: State, model: nn.Module, name: str, where: str) -> State:
    """`state` if its names and shapes are the model's. Raises UserError that lists what differs."""
    own = model.state_dict()
    for key in own.keys() - state.keys():
        if key.endswith(".num_batches_tracked"):  # files of torch before 0.4.1 lack it; torch itself fills it so
            state = {**state, key: torch.zeros_like(own[key])}
    missing = [key for key in own if key not in state]
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} {tuple(value.shape)} where the model has {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    lists = [("missing", missing), ("not in the model", unexpected), ("of another shape", shapes)]
    faults = [f"{len(names)} {what}: {some(names)}" for what, names in lists if names]
    if faults:
        alike = "it names the same parts, of another size, patch or stem" if not missing and not unexpected else ""
        raise UserError(
            f"{where} does not fit {name}: {alike or 'it looks like the weights of another model'} "
            f"({'; '.join(faults)}); nothing was loaded: choose the model and settings they were made for"
        )
    return state


def some(names: list[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
