"""Any source -> WebDataset tar shards, which `open_source("OUT/*.tar")` and the package webdataset both read.

    OUT/train-000000.tar    00000000.jpg, 00000000.cls, 00000001.png, 00000001.cls, ...; as many as fit the shard
    OUT/val-000000.tar      the same for val and test, where the source has them; nothing is held out here
    OUT/classes.json        the names of the classes, by number

A file is copied byte for byte and named after its content; an image of an array becomes a PNG, which keeps every pixel
(a grey one is read back as three equal channels, as any grey picture is). A `.cls` holds the class number; an image
with several labels has a `.json`, {"label": [numbers]}, instead. The images of a split are shuffled once, so that a
shard read from front to back is mixed; the same source and seed give the same bytes. Every image is decoded before it
is written; one that cannot be is left out and named.

The shards are written into a hidden folder beside OUT, which gets OUT's name when all is on the disk: half a set, which
would be read as a smaller one, never stands there. What a killed run leaves is removed by the next.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from vitrail.data.passes import one_pass
from vitrail.data.read import ImageError, decode_image, image_format
from vitrail.data.sources import Source, Split, find_source, label_problems
from vitrail.errors import UserError

_EXTENSION = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}

Read = tuple[int, bytes, str]
"""(number of the image in its split, its file, why it cannot be read or "")."""


def write_shards(
    source: str | Path,
    out: str | Path,
    *,
    images_per_shard: int = 1000,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes what `find_source` takes into the new folder `out`; `workers` processes read and check the images.

    Returns {"out", "classes", "multi_label", "splits": {split: {"images", "shards", "bytes"}}, "damaged": [{"split",
    "file", "reason"}], "seconds"}. Raises UserError for a source that cannot be trained on, for images that are neither
    grey nor RGB, and where `out` exists.
    """
    began, out = time.monotonic(), Path(out)
    if images_per_shard < 1:
        raise UserError(f"--images-per-shard is {images_per_shard}; it must be 1 or more")
    if os.path.lexists(out):
        raise UserError(f"{out} exists; shards are written into a new folder, so name another or remove it")
    opened = _trainable(source)
    damaged: list[dict[str, str]] = []
    written: dict[str, dict[str, int]] = {}
    with _new_folder(out) as folder:
        for name, split in opened.splits.items():
            files = _read(name, split, seed, workers, progress)
            written[name] = _write_split(name, split, folder, images_per_shard, files, damaged)
        if not written["train"]["images"]:
            raise UserError(f"{opened.name}: no image of train can be read; `vitrail doctor {source}` says why")
        with _flushed(folder / "classes.json") as file:
            file.write(json.dumps(opened.classes).encode())
    return {
        "out": str(out),
        "classes": opened.classes,
        "multi_label": opened.multi_label,
        "splits": written,
        "damaged": damaged,
        "seconds": round(time.monotonic() - began, 1),
    }


def _trainable(text: str | Path) -> Source:
    """The source, with its splits as they are. Refuses what `open_source` refuses, and pictures no shard can hold."""
    source = find_source(text)
    problems = [*source.problems, *label_problems(source)]
    if problems:
        raise UserError(problems[0])
    if source.in_chans not in (1, 3):
        raise UserError(f"{source.name} has images of {source.in_chans} channels; shards hold grey or RGB pictures")
    return source


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, which becomes `out` if all goes well and is removed if not."""
    folder = out.with_name(f".{out.name}.vitrail-partial")
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(name: str, split: Split, seed: int, workers: int, progress: bool) -> Iterator[Read]:
    """The files of a split in shuffled order, each decoded once."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).tolist()
    return one_pass(_Files(split), f"writing {name}", workers=workers, progress=progress, order=order)


class _Files:
    """What a worker does: number of an image -> its file, once it has been decoded."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Read:
        try:
            data = self.split.encoded(i)
            if data is None:
                return i, _png(self.split.read(i)), ""
            decode_image(data, self.split.name(i))
        except ImageError as error:
            return i, b"", error.reason
        except OSError as error:
            return i, b"", str(error.strerror or error)
        return i, data, ""


def _png(image: Tensor) -> bytes:
    """A uint8 image (1 or 3, H, W) as a PNG file."""
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write_split(
    name: str, split: Split, folder: Path, most: int, files: Iterable[Read], damaged: list[dict[str, str]]
) -> dict[str, int]:
    """The shards of a split. What cannot be read is added to `damaged`."""
    images = total = 0
    with contextlib.ExitStack() as open_shard:
        for i, data, reason in files:
            if reason:
                damaged.append({"split": name, "file": split.name(i), "reason": reason})
                continue
            if images % most == 0:
                open_shard.close()
                tar = open_shard.enter_context(_shard(folder / f"{name}-{images // most:06d}.tar"))
            label = split.labels[i]
            _add(tar, f"{images:08d}.{_EXTENSION[str(image_format(data[:16]))]}", data)
            if isinstance(label, list):
                _add(tar, f"{images:08d}.json", json.dumps({"label": label}).encode())
            else:
                _add(tar, f"{images:08d}.cls", str(label).encode())
            images, total = images + 1, total + len(data)
    return {"images": images, "shards": -(-images // most), "bytes": total}


@contextlib.contextmanager
def _shard(path: Path) -> Iterator[tarfile.TarFile]:
    with _flushed(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


@contextlib.contextmanager
def _flushed(path: Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when it is closed."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
