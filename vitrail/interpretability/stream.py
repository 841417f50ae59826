"""What flows from block to block: one view of every network's residual stream, whatever its blocks are.

    with tapped(model, look):        # look("blocks.3", Flow(prefix, grid)) after every block of every pass
        model(images)

Only `look` decides what is kept, so memory is bounded by what it returns, not by the depth of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitrail.interpretability.attention import to_grid


class Flow(NamedTuple):
    """What one block hands on, part of the graph: tokens without a place, and a value for every place."""

    prefix: Tensor
    """(B, T, D): class, distillation and register tokens; T may be 0."""
    grid: Tensor
    """(B, D, gh, gw)."""

    @property
    def tokens(self) -> Tensor:
        """(B, gh gw, D): the places in reading order."""
        return self.grid.flatten(2).mT


def trunk(model: nn.Module) -> list[str]:
    """The names of a model's blocks, first to last."""
    whole: Any = getattr(model, "_orig_mod", model)
    return list(whole.trunk())


@contextmanager
def tapped(model: nn.Module, look: Callable[[str, Flow], None], names: list[str] | None = None) -> Iterator[None]:
    """Call `look(name, flow)` after each block of each pass inside the `with`; `names` are blocks of `trunk`, None all.

    The model and its outputs stay as they are; fused attention stays on.
    """
    model = getattr(model, "_orig_mod", model)
    seen: list[Tensor] = []
    hooks = [model.register_forward_pre_hook(lambda _module, inputs: seen.__setitem__(slice(None), [inputs[0]]))]

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            look(name, as_flow(output, model, seen[0]))

        return hook

    try:
        for name in trunk(model) if names is None else names:
            hooks.append(model.get_submodule(name).register_forward_hook(watch(name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_flow(output: Any, model: nn.Module, images: Tensor) -> Flow:
    """What a block of `model` returns for `images` (B, C, H, W), as a Flow: a map, or tokens with their prefix first.

    Of a block that returns several things the last tensor counts: patches in TNT, tokens in MViT.
    """
    if not isinstance(output, Tensor):
        output = [part for part in output if isinstance(part, Tensor)][-1]
    if output.ndim == 4:
        grid = output.permute(0, 3, 1, 2) if getattr(model, "channels_last", False) else output
        return Flow(output.new_empty(len(output), 0, grid.shape[1]), grid)
    grid = to_grid(output.mT, model, images)
    return Flow(output[:, : output.shape[1] - grid.shape[-2] * grid.shape[-1]], grid)
