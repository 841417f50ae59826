"""Memory for one batch after another: fresh memory costs more than what is written into it, a page fault every 4 KB.

    memory = Reused()
    batch = memory.empty((64, 3, 224, 224))     # the memory of an earlier batch, once nobody holds that any more

Whoever holds the tensor, a view of it or a graph that needs it for a backward pass keeps its memory from being used.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_KEPT = 2  # batches, as a rule this one and the one before


class Reused:
    """Memory on the CPU, lent as tensors that are not initialised."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 tensor of that shape, contiguous."""
        size = math.prod(shape)
        fitting = [memory for memory in self.free if len(memory) >= size]
        memory = fitting[0] if fitting else torch.empty(size).numpy()
        self.free = [each for each in self.free if each is not memory]
        lent = memory[:size]  # an object that lives as long as what is made of it
        weakref.finalize(lent, self._back, memory).atexit = False
        return torch.from_numpy(lent).view(*shape)

    def _back(self, memory: np.ndarray) -> None:
        self.free = [*self.free, memory][-_KEPT:]
