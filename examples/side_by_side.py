"""What several runs look at in the same photographs, one row a run: how the README's picture was made.

python examples/side_by_side.py docs/overlays.png runs/cells_vit,runs/cells_cnn cells/val/WBC/145.jpg ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from vitrail import explain, load
from vitrail.interpretability import draw


def main(out: Path, runs: list[str], files: list[str]) -> None:
    """Write the picture `out`: the photographs, then each run's overlays with its answers."""
    figure = Figure(figsize=(1.9 * len(files), 2.2 * (len(runs) + 1)), dpi=110, layout="constrained")
    axes = figure.subplots(len(runs) + 1, len(files))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, file in zip(axes[0], files, strict=True):
        axis.imshow(Image.open(file))
        axis.set_title(Path(file).parent.name, fontsize=10)
    for row, name in zip(axes[1:], runs, strict=True):
        run = load(name)
        for axis, seen in zip(row, explain(run, files), strict=True):
            axis.imshow(draw.overlay(*draw.legible(seen.image, seen.map)))
            axis.set_title(f"{seen.predicted} {seen.probability:.0%}", fontsize=10)
        row[0].text(
            -0.08,
            0.5,
            f"{run.recipe.model}\n{seen.method}",
            transform=row[0].transAxes,
            rotation=90,
            ha="center",
            va="center",
        )
    out.write_bytes(draw.png(figure))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])
