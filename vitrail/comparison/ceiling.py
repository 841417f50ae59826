"""What the machine can do at most: the rate of a model's own matrix products done alone, and of copying memory.

A model's time has a floor that no rearrangement of the rest can pass: its matrix products, convolutions and attention,
at their own shapes, in their own precision, one after another with nothing between them. `products` listens to one pass
(or to a whole training step) for what these are, and then does each kind alone. A share of 1 would be a model whose
norms, activations, additions and copies cost nothing.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

REPEATS = 5
COPIED = 1 << 28  # bytes, far more than a cache holds


class Products(NamedTuple):
    """The matrix products, convolutions and attention of some work, done alone."""

    seconds: float
    multiply_adds: int

    @property
    def rate(self) -> float:
        """Floating-point operations a second, two for each multiply-add."""
        return 2 * self.multiply_adds / self.seconds


class _Hole(NamedTuple):
    """Where an operation had a tensor: what one like it needs."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Listener(TorchDispatchMode):
    """Counts the operations that have multiply-adds, by their kind and the shapes they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: Counter[tuple[Any, str]] = Counter()
        self.calls: dict[tuple[Any, str], tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if func.overloadpacket in flop_registry:
            call = tree_map(_emptied, (args, keywords))
            self.heard[func, str(call)] += 1
            self.calls[func, str(call)] = call
            return func(*args, **keywords)
        with self:  # in inference mode a linear layer arrives whole; its product is inside
            inside = func.decompose(*args, **keywords)
        return func(*args, **keywords) if inside is NotImplemented else inside


def products(work: Callable[[], object]) -> Products:
    """What `work`, a pass or a training step in eager mode, multiplies, and the seconds that this takes alone.

    `work` is done twice, to listen and to count. Every kind of product is timed REPEATS times on random numbers.
    """
    with _Listener() as listener:
        work()
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = sum(times * _alone(key[0], *listener.calls[key]) for key, times in listener.heard.items())
    return Products(seconds, counter.get_total_flops() // 2)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that are read and written where one large tensor is copied onto another."""
    source, target = (torch.ones(COPIED // 4, device=device) for _ in range(2))
    return 2 * COPIED / _median(lambda: target.copy_(source), device)


def _emptied(value: Any) -> Any:
    return _Hole(tuple(value.shape), value.stride(), value.dtype, value.device) if isinstance(value, Tensor) else value


def _filled(value: Any) -> Any:
    if not isinstance(value, _Hole):
        return value
    once = [side if step else 1 for side, step in zip(value.shape, value.stride, strict=True)]  # stride 0: expanded
    tensor = torch.empty_strided(once, value.stride, dtype=value.dtype, device=value.device)
    return (tensor.normal_() if value.dtype.is_floating_point else tensor.zero_()).expand(value.shape)


def _alone(func: Any, args: Any, keywords: Any) -> float:
    """Seconds of one operation on tensors like those it was given."""
    args, keywords = tree_map(_filled, (args, keywords), is_leaf=lambda value: isinstance(value, _Hole))
    devices = [value.device for value in args if isinstance(value, Tensor)]
    return _median(lambda: func(*args, **keywords), devices[0])


@torch.no_grad()
def _median(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        with _finished(device):
            start = time.perf_counter()
            work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@contextlib.contextmanager
def _finished(device: torch.device) -> Iterator[None]:
    """At both ends, nothing is left for the device to do."""
    _wait(device)
    yield
    _wait(device)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
