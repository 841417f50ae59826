"""Models that are built to be filled: drawing weights that a file then overwrites takes longer than reading the file.

Only parameters are left as the memory was; buffers and everything else are computed as always, so that tables of
positions, running statistics and constants are right whether or not a file holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made here have parameters of the right shapes and no meaning: fill all of them before use.

    Random numbers are left as they were found.
    """
    with torch.random.fork_rng(devices=[]), _NoFilling():
        yield


class _NoFilling(TorchFunctionMode):
    """In-place functions on parameters do nothing: `nn.init.trunc_normal_`, `Tensor.fill_` and their kin."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name, target = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        return target if fills and isinstance(target, nn.Parameter) else func(*args, **kwargs)
