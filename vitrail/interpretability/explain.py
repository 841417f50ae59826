"""Run and photographs -> what the model looked at, as maps and as pictures.

The map belongs to what the model saw: the square that evaluation cuts from the middle of the photograph. That square
is what the pictures show, so nothing is drawn where the model had no data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.files import find_images
from vitrail.data.read import ImageError, read_image
from vitrail.errors import UserError, did_you_mean
from vitrail.interpretability import draw
from vitrail.interpretability.attention import class_attention, entropy, records_attention
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.rollout import rollout_map
from vitrail.run import Run, load, preprocessing, probabilities

Method = Literal["rollout", "attention", "gradcam"]


@dataclass(frozen=True)
class Explanation:
    """What the model looked at in one image."""

    file: str
    """The image's path, or its name in a data set."""
    map: NDArray[np.float32]
    """(H, W) in [0, 1], at the size of `image`."""
    image: NDArray[np.uint8]
    """(H, W, 3): what the model saw, after resizing and cropping."""
    predicted: str
    """The most probable class."""
    probability: float
    """Its probability."""
    method: str
    """rollout, attention or gradcam."""
    peak: float
    """Largest value of the map over its mean, before scaling: 1 means that the map says nothing."""
    heads: NDArray[np.float32] | None = None
    """Method attention: (h, gh, gw), each head on its own."""
    picture: Path | None = None
    """The PNG that was written."""


def explain(
    run: Run | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    method: Method | None = None,
    out: str | Path | None = None,
    target: str | int | None = None,
    pretrained: bool = False,
) -> list[Explanation]:
    """What the model of `run` looks at in each of `images` (files; folders and globs too).

    `run` is a Run, a run folder or a model's name (random weights unless `pretrained`). `method` None takes rollout
    where the model records attention and gradcam elsewhere. `target` asks gradcam for another class than the
    predicted one, by name or number. With `out`, a folder, each picture is written as a PNG, and `contact_sheet.png`
    beside them when there are several. A damaged image is named at the end and left out. Raises UserError when no
    image can be read, when the model cannot give the method, and for an unknown method or class.
    """
    run = load(run, pretrained=pretrained)
    paths = find_images([images] if isinstance(images, str | Path) else images)
    folder = _folder(out)
    found: list[Explanation] = []
    damaged: list[ImageError] = []
    for path in paths:
        try:
            pixels = read_image(path)
        except ImageError as error:
            damaged.append(error)
            continue
        one = look(run, pixels, str(path), method=method, target=target)
        found.append(replace(one, picture=_save(run, one, folder, found)) if folder else one)
    if not found:
        raise damaged[0] if len(damaged) == 1 else UserError(f"no image could be read: {_named(damaged)}")
    if damaged:
        logging.getLogger("vitrail").warning("%d of %d images left out: %s", len(damaged), len(paths), _named(damaged))
    if folder and len(found) > 1:
        _write(folder / "contact_sheet.png", contact_sheet(run, found))
    return found


def look(
    run: Run, pixels: Tensor, file: str, *, method: Method | None = None, target: str | int | None = None
) -> Explanation:
    """What the model of `run` looks at in one image, uint8 (C, H, W); arguments and errors as of `explain`."""
    model, data = run.model, run.recipe.data
    images = preprocessing(data)(pixels)[None].to(next(model.parameters()).device)
    method = _method(run, images, method, target)
    wanted = None if target is None else _class(run, target)
    with torch.no_grad():
        shares = probabilities(run.recipe, model(images))[0].cpu()
    best = int(shares.argmax())
    heads = None
    if method == "gradcam":
        grid = gradcam(model, images, target=best if wanted is None else wanted)[0]
    elif method == "rollout":
        grid = rollout_map(model, images)[0]
    else:
        heads = class_attention(model, images)[0].cpu().numpy()
        grid = torch.from_numpy(heads.mean(0))
    values = grid.float().cpu().numpy()
    square = (images.shape[-2], images.shape[-1])
    return Explanation(
        file=file,
        map=draw.scale(draw.enlarge(values, square)),
        image=visible(images[0].cpu(), data.mean or (), data.std or ()),
        predicted=_name(run, best),
        probability=float(shares[best]),
        method=method if wanted is None else f"{method} for {_name(run, wanted)}",
        peak=float(values.max() / max(values.mean(), 1e-12)),
        heads=heads,
    )


def visible(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """A normalised image (C, H, W) -> the pixels it came from, (H, W, 3); one channel becomes grey."""
    centre, spread = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    pixels = ((image * spread + centre).clamp(0, 1) * 255).round().byte()
    colour = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(colour.permute(1, 2, 0).numpy())


def contact_sheet(run: Run, explanations: Sequence[Explanation]) -> bytes:
    """All overlays on one PNG, with class, probability and file."""
    tiles = [
        draw.Tile(draw.overlay(*draw.legible(one.image, one.map)), f"{_verdict(one)}\n{Path(one.file).name}")
        for one in explanations
    ]
    return draw.contact_sheet(tiles, f"{explanations[0].method} · {run.recipe.model} · {run.weights}")


def _method(run: Run, images: Tensor, method: str | None, target: str | int | None) -> Method:
    if method is None:
        return "rollout" if target is None and records_attention(run.model, images) else "gradcam"
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise UserError(f"no method '{method}', only {known}{did_you_mean(method, get_args(Method))}")
    if target is not None and method != "gradcam":
        raise UserError(f"{method} gives every class the same map, so target has no effect; use gradcam with a target")
    return method  # type: ignore[return-value]  # one of them, as just checked


def _class(run: Run, target: str | int) -> int:
    if isinstance(target, str) and target in run.classes:
        return run.classes.index(target)
    count = len(run.classes)
    if isinstance(target, int) or target.isdecimal():
        if 0 <= int(target) < count:
            return int(target)
        raise UserError(f"no class {target}: the model has classes 0 to {count - 1}")
    raise UserError(f"no class '{target}' among the model's {count}{did_you_mean(target, run.classes)}")


def _name(run: Run, index: int) -> str:
    return run.classes[index] if index < len(run.classes) else f"class {index}"


def _verdict(one: Explanation) -> str:
    return f"{one.predicted} · {one.probability:.1%}"


def _named(damaged: Sequence[ImageError]) -> str:
    return "; ".join(str(error) for error in damaged)


def _folder(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder '{folder}' for the pictures ({error.strerror}); choose another"
        ) from None
    return folder


def _save(run: Run, one: Explanation, folder: Path, earlier: Sequence[Explanation]) -> Path:
    heads = []
    for head, values in enumerate(one.heads if one.heads is not None else ()):
        even = float(entropy(torch.from_numpy(values)))
        heads.append((draw.scale(draw.enlarge(values, one.map.shape)), f"head {head} · entropy {even:.2f}"))
    note = f"{one.method} · {run.recipe.model} · {run.weights} · peak {one.peak:.1f}× mean · {Path(one.file).name}"
    stem = Path(one.file).stem[:50]  # a name may have 255 bytes, and the ending needs room
    path = folder / f"{stem}_{one.method.split()[0]}.png"
    if path in {other.picture for other in earlier}:  # photographs of one name, from different folders
        path = path.with_stem(f"{path.stem}_{len(earlier) + 1}")
    _write(path, draw.explanation(one.image, one.map, _verdict(one), note, heads))
    return path


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another folder with --out") from None
