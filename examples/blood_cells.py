"""Real photographs for the first five commands: crops around blood cells, as a folder that `vitrail train` takes.

    python examples/blood_cells.py BCCD_FOLDER cells
    vitrail train cells --model vit_pico_patch8_64 --augment.rotate 180 --out runs/cells

BCCD_FOLDER holds images.tar, train.json and val.json: the BCCD data set (github.com/Shenggan/BCCD_Dataset, MIT
licence) with its boxes in COCO form. Each crop shows 160 x 160 pixels around the middle of one box, always at the same
scale; red cells, of which there are ten times more, are thinned out.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
from pathlib import Path

from PIL import Image

SIDE, MOST = 160, 360


def main(source: Path, out: Path) -> None:
    """Write out/train/CLASS/*.jpg and out/val/CLASS/*.jpg."""
    photographs = tarfile.open(source / "images.tar")  # noqa: SIM115  (read until the script ends)
    for split in ("train", "val"):
        boxes = json.loads((source / f"{split}.json").read_text())
        classes = {category["id"]: category["name"] for category in boxes["categories"]}
        files = {image["id"]: image["file_name"] for image in boxes["images"]}
        found = boxes["annotations"]
        random.Random(0).shuffle(found)
        count = dict.fromkeys(classes, 0)
        for box in found:
            kind = box["category_id"]
            count[kind] += 1
            if count[kind] > (MOST if split == "train" else MOST // 4):
                continue
            data = photographs.extractfile("images/" + files[box["image_id"]])
            assert data is not None
            x, y, width, height = box["bbox"]
            photograph = Image.open(io.BytesIO(data.read())).convert("RGB")
            left = min(max(int(x + width / 2) - SIDE // 2, 0), photograph.width - SIDE)
            top = min(max(int(y + height / 2) - SIDE // 2, 0), photograph.height - SIDE)
            folder = out / split / classes[kind]
            folder.mkdir(parents=True, exist_ok=True)
            photograph.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{box['id']}.jpg", quality=92)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
