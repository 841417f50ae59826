"""Every version of an image that robustness.py scores, and what the model said of each: one pass, images read once.

Loader processes make the corrupted versions, all of an image together; the versions that need whole batches or the
model itself (occlusion, shuffle, other resolutions, attacks) are made from the clean squares, on the model's device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from vitrail.comparison.attacks import fgsm, normalised, pgd
from vitrail.comparison.occlusion import cells, deal, drop, own_map, random_drop, salient, shuffled
from vitrail.data.augment import adapt_channels
from vitrail.data.loader import Batch, Loader
from vitrail.data.order import hash_seed
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.interpretability.still import frozen
from vitrail.recipe import Data
from vitrail.run import Run, best_device, preprocessing
from vitrail.training.evaluate import outputs_of
from vitrail.training.metrics import calibration_error

TENTHS, MASSES, GRIDS = range(10), (0.1, 0.3, 0.5, 0.7, 0.9), (1, 2, 4, 8, 14)
EPSILONS = (1, 2, 4, 8)  # of 255 steps of a pixel
COARSER, SIZES = (0.5, 0.25), (0.75, 1.25, 1.5)
IN_FLIGHT = 2**24  # bytes of pixels that a loader process sends at a time
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
CLEAN = ("clean", 0)
Key = tuple[str, float]


class Asked(NamedTuple):
    """What is looked at, and how chance is decided."""

    corruptions: Sequence[str]
    severities: Sequence[int]
    attacks: Sequence[str]
    seed: int
    batch_size: int


class Tally:
    """What a model said of N images under each condition: was it right, and how sure."""

    def __init__(self) -> None:
        self.right: dict[Key, list[Tensor]] = defaultdict(list)
        self.sure: dict[Key, list[Tensor]] = defaultdict(list)
        self.shares: dict[Key, list[Tensor]] = defaultdict(list)
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self.map: str | None = None
        self.refused: dict[float, str] = {}

    def add(self, key: Key, logits: Tensor, labels: Tensor) -> None:
        """What was said, logits (B, K), of images with labels (B,)."""
        sure, said = logits.double().softmax(dim=1).max(dim=1)
        self.right[key].append((said == labels).cpu())
        self.sure[key].append(sure.cpu())

    def note(self, sentence: str) -> None:
        """Once, however many batches say it."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def n(self) -> int:
        """Images that could be read."""
        return sum(len(part) for part in self.right[CLEAN])

    def top1(self, key: Key = CLEAN) -> float:
        """The share of the images that were named rightly."""
        return float(torch.cat(self.right[key]).double().mean())

    def calibration(self, key: Key = CLEAN) -> float:
        """The expected calibration error."""
        return calibration_error(torch.cat(self.sure[key]), torch.cat(self.right[key]))

    def share(self, key: Key) -> float:
        """Of the cells that were dropped, a mean over the images."""
        return float(torch.cat(self.shares[key]).mean())

    def curve(self, name: str, axis: str) -> list[dict[str, float]]:
        """Accuracy at each point of a condition, in the order in which they were met."""
        return [{axis: key[1], "top1": self.top1(key)} for key in self.right if key[0] == name]


class Eyes(NamedTuple):
    """A model that answers pixels in [0, 1], in the order of the data's classes."""

    model: nn.Module
    order: Tensor
    """(K,) the numbers of its outputs."""
    data: Data
    device: torch.device

    @torch.no_grad()
    def say(self, images01: Tensor) -> Tensor:
        """(B, C, S, S) -> logits (B, K)."""
        return self.model(self.normalise(images01)).float()[:, self.order]

    def normalise(self, images01: Tensor) -> Tensor:
        return normalised(images01, self.data.mean or (), self.data.std or ())


class Versions:
    """uint8 image (C, H, W) -> the square that the run sees, and that square corrupted: (1 + V, C, S, S) uint8.

    Chance is decided by torch's random numbers, which the loader seeds for every image.
    """

    def __init__(self, data: Data, pairs: Sequence[tuple[str, int]]) -> None:
        channels = len(data.mean or ())
        self.square = preprocessing(replace(data, mean=(0.0,) * channels, std=(1.0,) * channels))
        self.pairs = pairs

    def __call__(self, image: Tensor) -> Tensor:
        clean = (self.square(image) * 255).round().to(torch.uint8)
        seed = int(torch.randint(2**31, ()))
        return torch.stack([clean, *(corrupted(clean, name, severity, seed) for name, severity in self.pairs)])


def corrupted(square: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """A square, uint8 (1 or 3, S, S), corrupted; grey is corrupted as RGB and made grey again. Severity 0: itself."""
    from vitrail.comparison.corruptions import corrupt

    if severity == 0:
        return square
    pixels = adapt_channels(square, 3).permute(1, 2, 0).contiguous().numpy()
    worse = torch.from_numpy(corrupt(pixels, name, severity, seed=seed)).permute(2, 0, 1)
    # rounded, so that grey which stays grey keeps its level; torchvision's luma cuts off
    return worse.contiguous() if len(square) == 3 else (LUMA @ worse.double().flatten(1)).round().byte().view_as(square)


def look(run: Run, source: Source, split: str, asked: Asked, *, alone: bool = False, progress: bool = False) -> Tally:
    """Score `run` on every version of the images of a split; `alone`: of corruptions, and clean, alone.

    Raises UserError where the classes are not the run's, or no image can be read.
    """
    device = best_device()
    data, tally = run.recipe.data, Tally()
    eyes = Eyes(run.model.to(device), torch.tensor(outputs_of(run, source), device=device), data, device)
    pairs = [(name, severity) for name in asked.corruptions for severity in asked.severities]
    if pairs and data.in_chans not in (1, 3):
        tally.note(f"no corruptions: they are defined for grey and RGB images, not {data.in_chans} channels")
        pairs = []
    loader = Loader(
        source.splits[split],
        Versions(data, pairs),
        batch_size=max(1, IN_FLIGHT // ((1 + len(pairs)) * (data.in_chans or 3) * (data.img_size or 1) ** 2)),
        seed=asked.seed,
        shuffle=False,
        workers=data.workers,
        num_classes=len(source.classes),
    )
    with frozen(run.model):
        batches = _shown(loader, f"{run.recipe.model} on {source.name}", progress)
        clean = _corruptions(eyes, batches, pairs, asked.batch_size, tally)
        sides = {} if alone else _sides(eyes, tally)
        for number, (pixels, labels) in enumerate(_grouped(clean, asked.batch_size)):
            if not alone:
                _alterations(eyes, pixels.float() / 255, labels, hash_seed(asked.seed, number), asked, sides, tally)
    if not tally.n:
        raise UserError(f"none of the {len(tally.damaged)} images held out can be read; `vitrail doctor` says why")
    return tally


def _shown(loader: Loader, about: str, progress: bool) -> Iterator[Batch]:
    """The batches of a loader, with a bar on standard error."""
    batches = loader.epoch(0)
    first = next(batches, None)  # before the bar's thread starts: the workers are forked here
    if first is None:
        return
    console = Console(stderr=True)
    yield from track(chain([first], batches), about, len(loader), console=console, transient=True, disable=not progress)


def _corruptions(
    eyes: Eyes, batches: Iterable[Batch], pairs: Sequence[tuple[str, int]], batch_size: int, tally: Tally
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score clean and corrupted squares; give the clean ones (B, C, S, S) uint8 and the labels (B,) on."""
    keys = [CLEAN, *pairs]
    for batch in batches:
        tally.damaged += batch.damaged
        if not len(batch.images):
            continue
        pixels, labels = batch.images.to(eyes.device), batch.labels.to(eyes.device)
        parts = pixels.flatten(0, 1).split(batch_size)
        logits = torch.cat([eyes.say(part.float() / 255) for part in parts]).unflatten(0, (-1, len(keys)))
        for key, said in zip(keys, logits.unbind(1), strict=True):
            tally.add(key, said, labels)
        yield pixels[:, 0], labels


def _grouped(parts: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of any length -> batches of `size`, the last one shorter."""
    held: tuple[Tensor, Tensor] | None = None
    for part in parts:
        held = part if held is None else (torch.cat([held[0], part[0]]), torch.cat([held[1], part[1]]))
        while len(held[0]) >= size:
            yield held[0][:size], held[1][:size]
            held = held[0][size:], held[1][size:]
    if held is not None and len(held[0]):
        yield held


def _alterations(
    eyes: Eyes, images: Tensor, labels: Tensor, seed: int, asked: Asked, sides: dict[float, int], tally: Tally
) -> None:
    """Score a batch of clean squares, in [0, 1], in every other version."""
    versions = (
        *(_random_occlusion(eyes, images, seed), _salient_occlusion(eyes, images, tally), _shuffles(images, seed)),
        *(_resolutions(images, sides), _attacks(eyes, images, labels, seed, asked.attacks, tally)),
    )
    for key, altered in chain.from_iterable(versions):
        tally.add(key, eyes.say(altered), labels)


def _random_occlusion(eyes: Eyes, images: Tensor, seed: int) -> Iterator[tuple[Key, Tensor]]:
    grid = cells(images.shape[-1])
    for tenths in TENTHS:
        dropped = random_drop(grid, tenths, seed)
        yield ("random black", tenths / 10), drop(images, dropped)
        yield ("random mean colour", tenths / 10), drop(images, dropped, eyes.data.mean or 0.0)


def _salient_occlusion(eyes: Eyes, images: Tensor, tally: Tally) -> Iterator[tuple[Key, Tensor]]:
    """Black, by the model's own map."""
    try:
        maps, tally.map = own_map(eyes.model, eyes.normalise(images))
    except UserError as error:
        return tally.note(str(error))
    for mass in MASSES:
        chosen = salient(maps, cells(images.shape[-1]), mass)
        for name, dropped in (("salient", chosen), ("non-salient", ~chosen)):
            tally.shares[name, mass].append(dropped.double().mean(dim=1).cpu())
            yield (name, mass), drop(images, dropped)


def _shuffles(images: Tensor, seed: int) -> Iterator[tuple[Key, Tensor]]:
    for grid in GRIDS:
        if images.shape[-1] % grid == 0:
            yield ("shuffle", grid), shuffled(images, deal(grid, seed))


def _resolutions(images: Tensor, sides: dict[float, int]) -> Iterator[tuple[Key, Tensor]]:
    for factor in COARSER:
        yield ("coarser", factor), coarser(images, factor)
    for factor, side in sides.items():
        larger = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        yield ("size", factor), larger.clamp(0, 1)


def coarser(images: Tensor, factor: float) -> Tensor:
    """`images` (B, C, S, S) made smaller, sides times `factor`, and as large as before: the detail is gone."""
    small = F.interpolate(images, size=_scaled(images.shape[-1], factor), mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[-1], mode="bilinear").clamp(0, 1)


def _attacks(
    eyes: Eyes, images: Tensor, labels: Tensor, seed: int, attacks: Sequence[str], tally: Tally
) -> Iterator[tuple[Key, Tensor]]:
    outputs, mean, std = eyes.order[labels], eyes.data.mean or (), eyes.data.std or ()
    for name, step in product(attacks, EPSILONS):
        eps = step / 255
        try:
            if name == "fgsm":
                moved = fgsm(eyes.model, images, outputs, eps, mean=mean, std=std)
            else:
                moved = pgd(eyes.model, images, outputs, eps, mean=mean, std=std, step=eps / 4, seed=seed)
        except UserError as error:  # no gradient reaches the pixels
            return tally.note(str(error))
        yield (name, step), moved


def input_side(side: int, factor: float) -> int:
    """`factor` times `side`, to the nearest whole number of the cells of occlusion: 224 -> 160, 288, 336."""
    cell = max(side // cells(side), 1)
    return cell * max(round(side * factor / cell), 1)


def _sides(eyes: Eyes, tally: Tally) -> dict[float, int]:
    """The other input sizes that the model takes; why it does not take the rest goes into the tally."""
    taken = {}
    for factor in SIZES:
        side = input_side(eyes.data.img_size or 1, factor)
        try:
            eyes.say(torch.zeros(1, eyes.data.in_chans or 3, side, side, device=eyes.device))
            taken[factor] = side
        except UserError as error:
            tally.refused[factor] = str(error)
    return taken


def _scaled(side: int, factor: float) -> int:
    return max(round(side * factor), 1)
