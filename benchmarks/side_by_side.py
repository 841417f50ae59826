"""Ours beside a peer's on the same work, in turns, and what it was measured on: what the scripts beside this share.

    from side_by_side import contest, keep, ratio, table

    found = contest({"vitrail": partial(ours, name), "timm": partial(theirs, name)}, rounds=7)
    print(ratio(found["vitrail"], found["timm"]))          # seconds of ours / theirs: median (least to most)

See vitrail/comparison/contest.py for what a contestant is. `keep` writes what docs/performance.md is made of.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.comparison.contest import Measured, Ratio, contest, ratio

__all__ = ["Measured", "Ratio", "contest", "keep", "machine", "ratio", "table"]

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    known = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return {"cpu": model, "flags": known, "device": device, "torch": torch.__version__}


def keep(name: str, rows: Sequence[Mapping[str, Any]], *, by: Sequence[str] = (), **about: Any) -> None:
    """Write `results/NAME.json`, which docs/performance.md is made of: the rows, the machine, what else was said.

    With `by`, rows that were kept before stay where none of these has the same in those columns: a table may be
    measured in parts, on one machine.
    """
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if by and file.exists() else []
    measured = {tuple(row[key] for key in by) for row in rows}
    rows = [*(row for row in before if tuple(row[key] for key in by) not in measured), *rows]
    found = {"machine": machine(), **about, "rows": rows}
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, columns in the order of the first."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
