"""From a cold process to a model that can be used, beside timm: seconds of whole processes, in turns.

    python benchmarks/start.py               # 9 rounds, about 4 minutes; --quick: 3
    python benchmarks/start.py --keep        # writes results/start.json too

Each measurement is a process of its own, `python -c` with the lines below, from its start to its end: interpreter,
imports, building, reading the weights, and with `predict` one answer for one photograph. Ours and the peer's read the
same safetensors file, which the system has in its page cache, since one round goes before that is not counted. Ratios
are seconds of ours over those of the peer's, round by round: below 1 is faster. The floor is `import torch` alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import Measured, keep, ratio, table

NAME = "vit_base_patch16_224"

BARE = "pass"
FLOOR = "import torch"
PACKAGE = "import vitrail"
OURS = f"import vitrail; vitrail.create_model('{NAME}', pretrained='FOLDER/model.safetensors').eval()"
RUN = "import vitrail; vitrail.load('FOLDER')"
THEIRS = f"import timm; timm.create_model('{NAME}', checkpoint_path='FOLDER/model.safetensors').eval()"
PREDICT = """
import sys
from vitrail.cli import command
sys.argv = ["vitrail", "predict", "FOLDER", "FOLDER/photo.jpg"]
command()
"""
THEIR_PREDICT = f"""
import timm, torch
from PIL import Image
model = timm.create_model('{NAME}', checkpoint_path='FOLDER/model.safetensors').eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.no_grad():
    image = transform(Image.open('FOLDER/photo.jpg').convert('RGB'))
    print(model(image[None]).softmax(-1).topk(5))
"""
CASES = {
    "import, nothing else": (PACKAGE, "import torch", FLOOR),
    "ViT-B/16 with weights, by its name": (OURS, "timm", THEIRS),
    "ViT-B/16 with weights, a run's folder": (RUN, "timm", THEIRS),
    "vitrail predict, one photograph": (PREDICT, "timm, as a script", THEIR_PREDICT),
}


def cold(code: str, folder: Path) -> float:
    """Seconds of a Python process that runs `code`."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code.replace("FOLDER", str(folder))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - began


def prepare(folder: Path) -> None:
    """A run's folder with a ViT-B/16 of 1000 classes, and a photograph."""
    import numpy as np
    from PIL import Image

    from vitrail import create_model
    from vitrail.recipe import Data, Recipe
    from vitrail.run import save_weights, start

    data = Data(source="", img_size=224, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    start(folder, Recipe(model=NAME, data=data), [f"class {k}" for k in range(1000)])
    save_weights(folder, create_model(NAME).state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")


def package_milliseconds(rounds: int) -> float:
    """Of `import vitrail` itself, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import vitrail; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(rounds)]
    return statistics.median(float(run.stdout) for run in runs) * 1e3


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--keep", action="store_true", help="write results/start.json")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        prepare(folder)
        os.environ["HF_HUB_OFFLINE"] = "1"  # neither side is to ask a network
        times: dict[str, list[float]] = {code: [] for ours, _, theirs in CASES.values() for code in (ours, theirs)}
        times |= {BARE: []}
        for turn in range(rounds + 1):
            for code, seconds in times.items():
                taken = cold(code, folder)
                seconds += [taken] if turn else []
    for what, (ours, peer, theirs) in CASES.items():
        found = ratio(*(Measured(times[code], 0.0, 0, 0) for code in (ours, theirs)))
        assert found is not None
        rows.append(
            {
                "what": what,
                "ours s": f"{statistics.median(times[ours]):.2f}",
                "peer": peer,
                "peer s": f"{statistics.median(times[theirs]):.2f}",
                "ours / peer": f"{found.median:.2f}",
                "least": f"{found.least:.2f}",
                "most": f"{found.most:.2f}",
            }
        )
    about = {
        "import vitrail, ms": round(package_milliseconds(rounds), 1),
        "an empty Python process, s": round(statistics.median(times[BARE]), 3),
        "import torch, s": round(statistics.median(times[FLOOR]), 2),
    }
    print(table(rows), *(f"{key}: {value}" for key, value in about.items()), sep="\n")
    if options.keep:
        keep("start", rows, rounds=rounds, about=about)


if __name__ == "__main__":
    main()
