"""What a model has learned, measured in every way that needs no second training: numbers for one page.

Analyses run one after another, each on the images it needs, which are read anew, prepared and reduced batch by batch:
memory follows the batch and the depth, not the number of images. A second model is asked the same on the same images.
What a model cannot give is a sentence in its place.

Cost      of a ViT-Ti at 224 some thousands of forward passes: the loss landscape, the curvature and the receptive
          fields take as many images as a fixed number of multiply-adds allows, but never fewer than 4 to 8.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from vitrail.checkpoint import write_file
from vitrail.comparison import cost
from vitrail.comparison.inspection_page import html
from vitrail.comparison.layer_probes import LayerProbes, layer_probes
from vitrail.comparison.subjects import Missing, Story, Subject, cast
from vitrail.errors import UserError, did_you_mean
from vitrail.interpretability import draw
from vitrail.interpretability.curvature import Curvature, top_eigenvalue
from vitrail.interpretability.distance import Statistics, attention_statistics
from vitrail.interpretability.explain import Method, look, visible
from vitrail.interpretability.feature_pca import FeaturePCA, feature_pca
from vitrail.interpretability.filters import patch_filters
from vitrail.interpretability.landscape import Landscape, loss_landscape
from vitrail.interpretability.localisation import Localisation, localisation
from vitrail.interpretability.positions import position_similarity, relative_bias
from vitrail.interpretability.receptive_field import ReceptiveFields, receptive_fields
from vitrail.interpretability.residual import ResidualRatios, residual_ratios
from vitrail.interpretability.similarity import Similarity, cka
from vitrail.interpretability.stream import trunk
from vitrail.run import Run, load
from vitrail.training.progress import Bar

SHOWN, EXPLAINED, BLOCKS = 6, 4, 6
GRID = 7  # points a side of the loss landscape
PROBED = 1000  # training images that the probes may draw


class Coloured(NamedTuple):
    """A few images and their features as colours."""

    images: NDArray[np.uint8]
    """(K, H, W, 3)."""
    pca: FeaturePCA


class Fields(NamedTuple):
    """Receptive fields of some blocks."""

    depth: NDArray[np.float64]
    """(L,) from above 0 to 1 at the last block."""
    fields: ReceptiveFields


class Looked(NamedTuple):
    """What a method finds in one image."""

    file: str
    label: str
    """Its true class, as the data have it."""
    predicted: str
    probability: float
    peak: float
    """The largest value of the map over its mean."""
    image: NDArray[np.uint8]
    overlay: NDArray[np.uint8]
    heads: NDArray[np.float32] | None
    """Method attention: (h, gh, gw)."""


class Analysis(NamedTuple):
    """One section of the page: what is measured of a model, by parts that may be missing on their own."""

    parts: Mapping[str, Callable[[Subject], Any]]
    images: bool = True
    """Whether it needs any."""
    between: Callable[[Subject, Subject], Any] | None = None
    """What is measured of two models together."""


def inspect(
    run: str | Path | Run,
    other: str | Path | Run | None = None,
    data: str | None = None,
    *,
    out: str | Path,
    images: int = 256,
    only: Sequence[str] = (),
    pretrained: bool = False,
) -> Path:
    """Ask `run`, and `other` beside it (run folders or models' names), all analyses or `only` some; write the page
    `inspection.html`, whose path is returned, and its numbers to 5 digits, `inspection.json`, in the folder `out`.

    `data` names the images, without it the first run's own or the other's: `images` of those held out, drawn evenly
    from the classes. They need not be the models' classes, nor need the two models have the same. Without any images
    only weights are shown. `pretrained` weights are of models' names. Raises UserError for fewer than 4 images, an
    unknown analysis, data that cannot be opened, and a folder that cannot be made.
    """
    chosen = _chosen(only)
    if images < 4:
        raise UserError(f"inspect: images is {images}; give 4 or more")
    runs = [load(run, pretrained=pretrained)]
    if other is not None:
        runs.append(load(other, pretrained=pretrained and not Path(str(other)).is_dir()))
    folder = _folder(Path(out))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    between: dict[str, Any] = {}
    with _Display(len(chosen) * len(runs)) as display:
        asked = cast(runs, data, images, looking=any(ANALYSES[name].images for name in chosen))
        subjects = asked.subjects
        for name in chosen:
            for subject in subjects:
                display.begin(name, subject.label)
                found[name].append(_parts(ANALYSES[name], subject))
                display.done(found[name][-1])
            both = ANALYSES[name].between
            if both is not None and len(subjects) == 2 and asked.data:
                between[name] = _asked(partial(both, subjects[0]), subjects[1])
    return _write(Story(asked, found, between), folder)


# ---------------------------------------------------------------------- the analyses


def _distance(subject: Subject) -> Statistics:
    return attention_statistics(subject.run.model, subject.batches(subject.total, 2 * subject.at_once()))


def _features(subject: Subject) -> Coloured:
    data = subject.run.recipe.data
    (images,) = subject.batches(SHOWN, SHOWN)
    pictures = np.stack([visible(image, data.mean or (), data.std or ()) for image in images.cpu()])
    return Coloured(pictures, feature_pca(subject.run.model, images))


def _receptive(subject: Subject) -> Fields:
    blocks = len(trunk(subject.run.model))
    layers = np.unique(np.linspace(0, blocks - 1, BLOCKS).round().astype(int))
    images = subject.batches(subject.affordable(8 * len(layers), 8, 32), subject.at_once())
    return Fields((layers + 1) / blocks, receptive_fields(subject.run.model, images, layers=layers.tolist()))


def _alike(subject: Subject) -> Iterator[Tensor]:
    """Batches of one size, of nearly all images."""
    size = subject.whole()
    return islice(subject.batches(subject.total, size), subject.total // size)


def _cka(subject: Subject) -> Similarity:
    return cka(subject.run.model, _alike(subject))


def _cka_between(one: Subject, other: Subject) -> Similarity:
    size = min(one.whole(), other.whole())
    most = one.total // size * size
    return cka(one.run.model, zip(one.batches(most, size), other.batches(most, size), strict=True), other.run.model)


def _probes(subject: Subject) -> LayerProbes:
    """10 shots and 3 draws where the classes are few enough."""
    classes = len(subject.source.classes) if subject.source else 1
    shots = int(np.clip(PROBED // (3 * classes), 1, 10))
    seeds = 3 if 3 * shots * classes <= PROBED else 1
    return layer_probes(subject.run, shots=shots, seeds=seeds, most=subject.total, batch_size=2 * subject.at_once())


def _residual(subject: Subject) -> ResidualRatios:
    return residual_ratios(subject.run.model, subject.batches(128, subject.at_once()))


def _localisation(subject: Subject) -> Localisation:
    return localisation(subject.run.model, _alike(subject))


def _landscape(subject: Subject) -> Landscape:
    loss, batches = subject.labelled(subject.affordable(GRID**2, 8, 64))
    return loss_landscape(subject.run.model, loss, batches, steps=GRID)


def _curvature(subject: Subject) -> Curvature:
    loss, batches = subject.labelled(subject.affordable(200, 4, 32))
    return top_eigenvalue(subject.run.model, loss, batches, iterations=20, tolerance=1e-2)


def _looks(method: Method, subject: Subject) -> list[Looked]:
    """The first images through one method."""
    assert subject.source is not None, "asked for images without data"
    assert subject.split is not None, "asked for images without data"
    found = []
    for i in range(min(EXPLAINED, subject.total)):
        label = subject.split.labels[i]
        names = ", ".join(subject.source.classes[k] for k in (label if isinstance(label, list) else [label]))
        one = look(subject.run, subject.split.read(i), subject.split.name(i), method=method)
        image, over = draw.legible(one.image, one.map)[0], draw.overlay(*draw.legible(one.image, one.map))
        found.append(Looked(one.file, names, one.predicted, one.probability, one.peak, image, over, one.heads))
    return found


ANALYSES: dict[str, Analysis] = {
    "distance": Analysis({"attention": _distance}),
    "positions": Analysis(
        {
            "similarity": lambda subject: position_similarity(subject.run.model),
            "bias": lambda subject: relative_bias(subject.run.model),
        },
        images=False,
    ),
    "filters": Analysis({"filters": lambda subject: patch_filters(subject.run.model)}, images=False),
    "features": Analysis({"features": _features}),
    "receptive": Analysis({"fields": _receptive}),
    "cka": Analysis({"cka": _cka}, between=_cka_between),
    "probes": Analysis({"probes": _probes}),
    "residual": Analysis({"ratios": _residual}),
    "localisation": Analysis({"localisation": _localisation}),
    "landscape": Analysis({"landscape": _landscape, "curvature": _curvature}),
    "maps": Analysis(
        {
            "rollout": partial(_looks, "rollout"),
            "attention": partial(_looks, "attention"),
            "relevance": partial(_looks, "relevance"),
            "gradcam": partial(_looks, "gradcam"),
        }
    ),
}


def _parts(analysis: Analysis, subject: Subject) -> dict[str, Any]:
    if analysis.images and subject.split is None:
        return {part: Missing("needs images: name DATA") for part in analysis.parts}
    return {part: _asked(measure, subject) for part, measure in analysis.parts.items()}


def _asked(measure: Callable[[Subject], Any], subject: Subject) -> Any:
    """What it finds, or in the model's own words why it cannot."""
    try:
        return measure(subject)
    except UserError as error:
        return Missing(str(error))


# ---------------------------------------------------------------------- what is asked for, and what is written


def _chosen(only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in ANALYSES:
            raise UserError(f"no analysis '{name}'{did_you_mean(name, ANALYSES)}; there are {', '.join(ANALYSES)}")
    return [name for name in ANALYSES if name in only or not only]


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    return folder


def _write(story: Story, folder: Path) -> Path:
    """The page and its numbers."""
    asked = story.cast
    numbers = {
        "models": [
            {
                "label": one.label,
                "run": str(one.run.folder or one.run.recipe.model),
                "model": one.run.recipe.model,
                "weights": one.run.weights,
                "parameters": cost.parameters(one.run.model),
                "flops": one.flops,
                "right": one.right,
            }
            for one in asked.subjects
        ],
        **{"data": asked.data, "split": asked.split, "images": asked.subjects[0].total, "damaged": asked.damaged},
        "analyses": dict(story.found),
        "between": dict(story.between),
    }
    text = json.dumps(plain(numbers), ensure_ascii=False, allow_nan=False)
    write_file(folder / "inspection.json", text + "\n")
    write_file(folder / "inspection.html", html(story))
    return folder / "inspection.html"


def plain(value: Any) -> Any:
    """What JSON can hold: numbers to 5 digits, None where they are not finite; pictures (uint8) are left out."""
    if isinstance(value, Missing):
        return {"not_available": value.why}
    if isinstance(value, np.ndarray):
        return [plain(part) for part in value] if value.ndim > 1 else [plain(number) for number in value.tolist()]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if getattr(part, "dtype", None) != np.uint8}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


class _Display(Bar):
    """On standard error: a bar over the analyses in a terminal, a line for each elsewhere."""

    def __init__(self, total: int) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self.task = self.bar.add_task("reading images", total=total)
        self.what, self.since = "", time.perf_counter()

    def begin(self, name: str, label: str) -> None:
        """An analysis of a model begins."""
        self.what, self.since = f"{name:<13} {label}", time.perf_counter()
        self.bar.update(self.task, description=self.what)

    def done(self, parts: Mapping[str, Any]) -> None:
        """It has ended, with these parts."""
        seconds = time.perf_counter() - self.since
        missing = all(isinstance(part, Missing) for part in parts.values())
        said = next(iter(parts.values())).why if missing else f"{seconds:.1f} s"
        self.bar.update(self.task, advance=1)
        self.say(f"{self.what}  {said}")
