"""The exponential moving average of a model's weights: what is evaluated and saved where a recipe has `ema`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """A copy of a model's parameters and buffers that follows them: a <- a + (1 - d) (w - a), in float32 at least.

    After t updates d is min(decay, (1 + t) / (10 + t)), and 0 at the first: a short run is not an average over its
    random start. Whole numbers (BatchNorm's count of batches) are copied. A tensor with two names, as in tied layers,
    is averaged once; of a sharded one (DTensor) each process averages its part.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values: dict[str, Tensor] = {}
        once: dict[int, Tensor] = {}
        for name, tensor in _tensors(model).items():
            self.values[name] = once.setdefault(id(tensor), _wide(tensor.detach()).clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        pairs = self._pairs(model)
        weight = 1 - (min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0)
        floating = [(mean, _wide(value)) for mean, value in pairs if mean.is_floating_point()]
        means, values = [mean for mean, _ in floating], [value for _, value in floating]
        torch._foreach_lerp_(means, values, weight)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
        self.count += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged weights; afterwards its own again, bit for bit."""
        with torch.no_grad():
            pairs = self._pairs(model)
            kept = [value.clone() for _, value in pairs]
            for mean, value in pairs:
                value.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                # asked for anew: with its state FSDP also forgets the averaged weights that it gathered for a forward
                for (_, value), own in zip(self._pairs(model), kept, strict=True):
                    value.copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under the names of the model's state, and `count`, the number of updates."""
        return {**self.values, "count": torch.tensor(self.count)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises KeyError for other names and RuntimeError for other shapes."""
        wrong = sorted({*self.values, "count"} ^ set(state))
        if wrong:
            raise KeyError(f"the average of another model: {', '.join(wrong[:3])}")
        for name, mean in self.values.items():
            if mean.shape != state[name].shape:
                raise RuntimeError(f"{name} is {tuple(state[name].shape)} and should be {tuple(mean.shape)}")
        for name, mean in self.values.items():
            mean.copy_(state[name])
        self.count = int(state["count"])

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The part of each average that this process holds, beside the model's tensor."""
        own = _tensors(model)
        once = {id(mean): (mean, own[name]) for name, mean in self.values.items()}
        return [(_local(mean), _local(value.detach())) for mean, value in once.values()]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, as themselves: tied ones are one object."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
