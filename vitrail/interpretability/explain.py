"""Run and photographs -> what the model looked at, as maps and as pictures.

The map belongs to what the model saw: the square that evaluation cuts from the middle of the photograph. That square
is what the pictures show, so nothing is drawn where the model had no data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.data.files import find_images
from vitrail.data.read import ImageError, read_image
from vitrail.errors import UserError, did_you_mean
from vitrail.interpretability import draw
from vitrail.interpretability.attention import at_layer, entropy, records_attention, sites
from vitrail.interpretability.feature_pca import feature_pca
from vitrail.interpretability.gradcam import gradcam
from vitrail.interpretability.relevance import attention_gradient, relevance
from vitrail.interpretability.rollout import rollout_map
from vitrail.run import Run, load, preprocessing, probabilities

Method = Literal["rollout", "attention", "relevance", "attention-gradient", "gradcam", "features"]
Layer = int | Literal["all"]
SPEAKING = {"gradcam": gradcam, "relevance": relevance, "attention-gradient": attention_gradient}


class Asked(NamedTuple):
    """What is asked of a model: a method, and those of its options that were given."""

    method: Method
    layer: Layer | None = None
    query: tuple[int, int] | None = None
    target: int | None = None

    def name(self, run: Run) -> str:
        """In words."""
        words: str = self.method
        if self.layer is not None:
            words += " of all layers, the last one large" if self.layer == "all" else f" of layer {self.layer}"
        words += f" from {self.query[0]},{self.query[1]}" if self.query else ""
        return words if self.target is None else f"{words} for {_name(run, self.target)}"

    def tag(self) -> str:
        """In the name of a file."""
        words = [self.method, "" if self.layer is None else f"layer{self.layer}"]
        words += [f"from{self.query[0]}-{self.query[1]}" if self.query else ""]
        return "_".join(filter(None, [*words, "" if self.target is None else f"class{self.target}"]))


class Drawn(NamedTuple):
    """A map at the size of its image and what belongs to it: the fields of `Explanation` of these names."""

    map: NDArray[np.float32]
    peak: float = 1.0
    heads: NDArray[np.float32] | None = None
    layers: tuple[NDArray[np.float32], ...] = ()
    box: draw.Box | None = None
    explained: tuple[float, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What the model looked at in one image."""

    file: str
    """The image's path, or its name in a data set."""
    map: NDArray[np.float32]
    """(H, W) in [0, 1], at the size of `image`; of method features (H, W, 3), red, green and blue."""
    image: NDArray[np.uint8]
    """(H, W, 3): what the model saw, after resizing and cropping."""
    predicted: str
    """The most probable class."""
    probability: float
    """Its probability."""
    method: str
    """rollout, attention, relevance, attention-gradient, gradcam or features, and its options in words."""
    peak: float
    """Largest value of the map over its mean before scaling; 1 means that the map says nothing (features: 1)."""
    heads: NDArray[np.float32] | None = None
    """Method attention: (h, gh, gw), each head on its own."""
    layers: tuple[NDArray[np.float32], ...] = ()
    """Method attention of all layers: (gh, gw) each, the mean over heads, first layer first."""
    box: draw.Box | None = None
    """Where the query lies: top, left, bottom and right, as shares of the image's sides."""
    explained: tuple[float, ...] = ()
    """Method features: what red, green and blue hold of the variance, as shares."""
    picture: Path | None = None
    """The PNG that was written."""


def explain(
    run: Run | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    method: Method | None = None,
    layer: Layer | None = None,
    query: tuple[int, int] | None = None,
    out: str | Path | None = None,
    target: str | int | None = None,
    pretrained: bool = False,
) -> list[Explanation]:
    """What the model of `run` looks at in each of `images` (files; folders and globs too).

    `run` is a Run, a run folder or a model's name (random weights unless `pretrained`). `method` None takes rollout
    where the model records attention and gradcam elsewhere, or attention where `layer` or `query` is given. `layer`
    (attention, features) is a block, negative from the top; None is the last, and attention takes "all" too. `query`
    (attention) is the row and column of the patch that asks, on the grid of that block, instead of the class token.
    `target` asks gradcam, relevance and attention-gradient for another class than the predicted one, by name or number.
    Colours of features mean the same in all `images`. With `out`, a folder, each picture is written as a PNG, and
    `contact_sheet.png` beside them when there are several. A damaged image is named at the end and left out. Raises
    UserError when no image can be read, when the model cannot give the method, for an unknown method or class, and for
    an option of another method.
    """
    run = load(run, pretrained=pretrained)
    paths = find_images([images] if isinstance(images, str | Path) else images)
    folder = _folder(out)
    damaged: list[ImageError] = []
    seen = ((str(path), _shown(run, pixels)) for path, pixels in _readable(paths, damaged))
    found: list[Explanation] = []
    for asked, one in _answers(run, seen, method, layer, query, target):
        found.append(replace(one, picture=_save(run, one, folder, asked, found)) if folder else one)
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
    ((_, one),) = _answers(run, [(file, _shown(run, pixels))], method, None, None, target)
    return one


def _readable(paths: Iterable[Path], damaged: list[ImageError]) -> Iterator[tuple[Path, Tensor]]:
    """The images that can be read, uint8 (C, H, W); the others' errors go into `damaged`."""
    for path in paths:
        try:
            yield path, read_image(path)
        except ImageError as error:
            damaged.append(error)


def _shown(run: Run, pixels: Tensor) -> Tensor:
    """One image as the model sees it, (1, C, H, W), normalised."""
    return preprocessing(run.recipe.data)(pixels)[None].to(next(run.model.parameters()).device)


def _answers(
    run: Run,
    seen: Iterable[tuple[str, Tensor]],
    method: str | None,
    layer: Layer | None,
    query: tuple[int, int] | None,
    target: str | int | None,
) -> Iterator[tuple[Asked, Explanation]]:
    """What is asked of the model for each file and image (1, C, H, W), and what it looks at there."""
    wanted = None if target is None else _class(run, target)
    asked = None if method is None else _asked(method, layer, query, wanted)
    if asked and asked.method == "features":  # whose colours need all images at once
        for one in _coloured(run, list(seen), asked):
            yield asked, one
        return
    for file, image in seen:
        asked = asked or _asked(_default(run, image, layer, query, wanted), layer, query, wanted)
        yield asked, _explanation(run, file, image, asked, _drawn(run.model, image, asked))


def _coloured(run: Run, seen: Sequence[tuple[str, Tensor]], asked: Asked) -> Iterator[Explanation]:
    """All images with the principal components of their features."""
    if not seen:
        return
    layer = -1 if asked.layer is None else int(asked.layer)
    found = feature_pca(run.model, torch.cat([image for _, image in seen]), layer=layer)
    shares = tuple(float(share) for share in found.explained)
    for (file, image), picture in zip(seen, found.picture, strict=True):
        colours = draw.mosaic(picture, (image.shape[-2], image.shape[-1]))
        yield _explanation(run, file, image, asked, Drawn(colours, explained=shares))


def _drawn(model: nn.Module, image: Tensor, asked: Asked) -> Drawn:
    """The map of one image by any method but features."""
    if asked.method == "attention":
        return _attention(model, image, asked)
    if asked.method == "rollout":
        return _smooth(rollout_map(model, image)[0], image)
    return _smooth(SPEAKING[asked.method](model, image, target=asked.target)[0], image)


def _attention(model: nn.Module, image: Tensor, asked: Asked) -> Drawn:
    found = sites(model, image)
    site = at_layer(found, asked.layer if isinstance(asked.layer, int) else -1)
    heads = site.seen_from(asked.query)[0].float()
    every = found if asked.layer == "all" else []
    layers = tuple(one.seen_from(asked.query)[0].float().mean(0).cpu().numpy() for one in every)
    drawn = _smooth(heads.mean(0), image)._replace(heads=heads.cpu().numpy(), layers=layers)
    if asked.query is None:
        return drawn
    (row, column), (high, wide) = asked.query, site.places.query_grid
    return drawn._replace(box=(row / high, column / wide, (row + 1) / high, (column + 1) / wide))


def _smooth(grid: Tensor, image: Tensor) -> Drawn:
    """A map over patches (gh, gw) at the size of `image`, in [0, 1]."""
    values = grid.detach().float().cpu().numpy()
    heat = draw.scale(draw.enlarge(values, (image.shape[-2], image.shape[-1])))
    return Drawn(heat, peak=float(values.max() / max(values.mean(), 1e-12)))


def _explanation(run: Run, file: str, image: Tensor, asked: Asked, drawn: Drawn) -> Explanation:
    data = run.recipe.data
    with torch.no_grad():
        shares = probabilities(run.recipe, run.model(image))[0].cpu()
    best = int(shares.argmax())
    return Explanation(
        file=file,
        image=visible(image[0].cpu(), data.mean or (), data.std or ()),
        predicted=_name(run, best),
        probability=float(shares[best]),
        method=asked.name(run),
        **drawn._asdict(),
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
        draw.Tile(
            draw.framed(draw.overlay(*draw.legible(one.image, one.map)), one.box),
            f"{_verdict(one)}\n{Path(one.file).name}",
        )
        for one in explanations
    ]
    return draw.contact_sheet(tiles, f"{explanations[0].method} · {run.recipe.model} · {run.weights}")


def _default(run: Run, image: Tensor, layer: Layer | None, query: tuple[int, int] | None, target: int | None) -> Method:
    """The method where none is named."""
    if layer is not None or query is not None:
        return "attention"
    return "rollout" if target is None and records_attention(run.model, image) else "gradcam"


def _asked(method: str, layer: Layer | None, query: tuple[int, int] | None, target: int | None) -> Asked:
    """Method and options, checked against each other."""
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise UserError(f"no method '{method}', only {known}{did_you_mean(method, get_args(Method))}")
    if target is not None and method not in SPEAKING:
        raise UserError(
            f"{method} gives every class the same map, so target has no effect; use {_either(SPEAKING)} with a target"
        )
    if layer is not None and method not in ("attention", "features"):
        raise UserError(
            f"{method} is of no single layer, so layer has no effect; use attention or features with a layer"
        )
    if not isinstance(layer, int | None) and (layer != "all" or method == "features"):
        also = "" if method == "features" else " or 'all'"
        raise UserError(f"layer is '{layer}'; {method} takes a number{also}, negative from the top")
    if query is not None and method != "attention":
        raise UserError(f"{method} is not asked by one patch, so query has no effect; use attention with a query")
    if query is not None and len(query) != 2:
        raise UserError(f"query is {query}; give the row and the column of a patch, such as (4, 7)")
    return Asked(method, layer, query, target)  # type: ignore[arg-type]  # one of them, as just checked


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


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


def _save(run: Run, one: Explanation, folder: Path, asked: Asked, earlier: Sequence[Explanation]) -> Path:
    stem = Path(one.file).stem[:50]  # a name may have 255 bytes, and the ending needs room
    path = folder / f"{stem}_{asked.tag()}.png"
    if path in {other.picture for other in earlier}:  # photographs of one name, from different folders
        path = path.with_stem(f"{path.stem}_{len(earlier) + 1}")
    strength = f"peak {one.peak:.1f}× mean"
    if one.explained:
        strength = "red, green, blue: " + ", ".join(f"{share:.0%}" for share in one.explained) + " of the variance"
    note = f"{one.method} · {run.recipe.model} · {run.weights} · {strength} · {Path(one.file).name}"
    _write(path, draw.explanation(one.image, one.map, _verdict(one), note, _tiles(one), one.box))
    return path


def _tiles(one: Explanation) -> list[tuple[NDArray[np.float32], str]]:
    """The maps below the large ones: each layer, else each head."""
    kind, maps = ("layer", one.layers) if one.layers else ("head", () if one.heads is None else tuple(one.heads))
    return [
        (draw.scale(values), f"{kind} {index} · entropy {float(entropy(torch.from_numpy(values))):.2f}")
        for index, values in enumerate(maps)
    ]


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror}); choose another folder with --out") from None
