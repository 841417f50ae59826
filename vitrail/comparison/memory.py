"""How much memory a model needs to answer: the high-water mark of a process that does nothing else.

    python -m vitrail.comparison.memory RUN 32      prints {"bytes": ..., "before": ..., "device": "cpu"}

On a CPU the mark is that of the whole process, Python and torch included; `before` is what these took before there was
a model. A process of its own, since a mark never falls. On a GPU: what torch had allocated at most.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import UserError
from vitrail.run import best_device, load

BATCH = 32


def peak_memory(folder: Path, batch: int = BATCH) -> dict[str, Any]:
    """Bytes at most while the run in `folder` answers one batch, bytes before it was there, and the device.

    Raises UserError where that process fails, as a rule because there is not enough memory.
    """
    words = [sys.executable, "-m", "vitrail.comparison.memory", str(folder), str(batch)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, as a rule for want of memory"])[-1]
        raise UserError(f"the memory of {folder} at batches of {batch} could not be measured: {last}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def high_water() -> int:
    """The largest resident set of this process so far, in bytes.

    Linux keeps in ru_maxrss what the parent had when it started this process, so its own file is read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(folder: str, batch: int) -> dict[str, Any]:
    """What `peak_memory` returns, of this very process."""
    device = best_device()
    before = high_water()
    run = load(Path(folder))
    data = run.recipe.data
    assert data.img_size, "the recipe of a run folder is resolved"
    assert data.in_chans, "the recipe of a run folder is resolved"
    model = run.model.to(device)
    with torch.inference_mode():
        model(torch.zeros(batch, data.in_chans, data.img_size, data.img_size, device=device))
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(), "before": 0, "device": device.type}
    return {"bytes": high_water(), "before": before, "device": device.type}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
