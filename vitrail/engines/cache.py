"""What was chosen before on this machine: a small JSON file for each question, of which any may be lost or damaged."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.checkpoint import write_file
from vitrail.engines.engine import cache_folder, version
from vitrail.errors import UserError

PACKAGES = ("vitrail", "torch", "openvino", "nncf", "onnxruntime", "torchao")


def question(model: nn.Module, shape: Sequence[int], *more: Any) -> str:
    """A digest of all that the choice hangs on: model, `shape` of a batch, `more`, the machine, the packages."""
    # other weights may agree with an engine where these do not; sums tell them apart
    weights = [(name, list(value.shape), float(value.double().sum())) for name, value in model.state_dict().items()]
    about = [type(model).__qualname__, repr(getattr(model, "config", "")), weights, list(shape), *more]
    packages = {name: version(name) for name in PACKAGES}
    text = json.dumps([about, torch.get_num_threads(), processor(), packages], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def processor() -> str:
    """The name of this machine's processor and what it can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = sorted({line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))})
    return " ".join(named) or f"{platform.machine()} {platform.processor()}"


def recall(digest: str) -> dict[str, Any] | None:
    """What was answered, None where it never was or the file is no whole answer."""
    try:
        answer = json.loads((cache_folder() / f"{digest}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def remember(digest: str, answer: dict[str, Any]) -> None:
    """Keep an answer where the folder can be written; it is found again otherwise."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_file(cache_folder() / f"{digest}.json", json.dumps(answer, indent=1) + "\n")
    except (OSError, UserError):
        return
