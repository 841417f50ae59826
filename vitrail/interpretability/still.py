"""A model held still while it is looked at: in eval mode, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the `with`; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter that asks for a gradient: where only that of the images is wanted."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with evaluating(model.requires_grad_(requires_grad=False)):
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_()
