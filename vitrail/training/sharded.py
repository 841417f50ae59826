"""FSDP: weights, gradients and optimiser cut into one piece a process, and checkpoints of which each writes its own.

A checkpoint's tensors go through torch.distributed.checkpoint into safetensors files, one a process, under the names
of their parameters; they are read back on any number of processes, each taking the parts that it now needs. Nothing in
them is a pickle. What is no tensor (epoch, step, history) stands beside them in `state.pt`, as in any checkpoint.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from vitrail import checkpoint
from vitrail.training.average import Average
from vitrail.training.distributed import is_main, told

if TYPE_CHECKING:
    from vitrail.training.learner import Learner

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def shard(module: nn.Module) -> None:
    """Cut a module's parameters over all processes, in place, block by block: only one block at a time is whole.

    Call before the optimiser is made. A block is what stands in a list of layers and has more than one layer itself.
    """
    lists = (child for child in module.modules() if isinstance(child, nn.Sequential | nn.ModuleList))
    blocks = [block for layers in lists for block in layers if _layers(block) > 1]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block)
    fully_shard(module)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded module with its tensors put together, on the CPU of the main process; empty elsewhere."""
    state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(state)


def save(folder: Path, step: int, state: dict[str, Any], learner: Learner) -> Path:
    """Keep what `learner` is, in parts, and `state` as the checkpoint of `step` under `folder`: all processes together.

    Raises UserError on the main process where it cannot be written.
    """
    temporary = told(checkpoint.begin(folder, step) if is_main() else None)
    writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    with checkpoint.writing(temporary) if is_main() else contextlib.nullcontext():
        dcp.save(_tensors(learner.module, learner.optimizer, learner.average), storage_writer=writer)
    state = state | {"scaler": learner.scaler.state_dict()}
    path: Path = told(checkpoint.finish(temporary, step, state) if is_main() else None)
    return path


def load(path: Path, learner: Learner, state: dict[str, Any]) -> None:
    """The parts that `save` wrote, on any number of processes; `state` is what it wrote beside them.

    Raises RuntimeError for another model's, or another optimiser's.
    """
    module, optimizer, average = learner.module, learner.optimizer, learner.average
    tensors = _tensors(module, optimizer, average)
    written = set(dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)
    strange = sorted(name for name in written - tensors.keys() if name.startswith("optimizer."))
    if strange:
        raise RuntimeError(f"its optimiser is not this one: it keeps {strange[0]}")
    # torch gives every parameter a state; one that has not learned yet, as in frozen epochs, has none
    learned = {_learner_of(key) for key in written}
    fresh = {name: parameter for name, parameter in module.named_parameters() if name not in learned}
    tensors = {key: value for key, value in tensors.items() if _learner_of(key) not in fresh}
    checkpoint.read_tensors(path, tensors)
    flat: Any = get_optimizer_state_dict(module, optimizer, options=FLAT)
    flat |= {name.removeprefix("optimizer."): value for name, value in tensors.items() if name.startswith("optimizer.")}
    set_optimizer_state_dict(module, optimizer, flat, options=FLAT)
    for parameter in fresh.values():
        optimizer.state.pop(parameter, None)
    learner.scaler.load_state_dict(state["scaler"])
    if average is not None:
        average.load_state_dict({key.removeprefix("ema."): tensors[key] for key in tensors if key.startswith("ema.")})


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """Every tensor by its name. Those of the model are the model's own, so that loading fills it."""
    parts: dict[str, Any] = {
        "model": get_model_state_dict(module),
        "optimizer": get_optimizer_state_dict(module, optimizer, options=FLAT),
        "ema": average.state_dict() if average is not None else {},
    }
    return {
        f"{part}.{name}": value
        for part, state in parts.items()
        for name, value in state.items()
        if isinstance(value, Tensor)  # rates and decays are the recipe's
    }


def _learner_of(key: str) -> str:
    """optimizer.state.blocks.0.norm.weight.exp_avg -> blocks.0.norm.weight, whose state it is; else nothing."""
    before, _, after = key.partition("optimizer.state.")
    return "" if before else after.rpartition(".")[0]


def _layers(module: nn.Module) -> int:
    return sum(1 for child in module.modules() if next(child.parameters(recurse=False), None) is not None)
