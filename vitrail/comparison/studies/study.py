"""What a study is made of: a scale, arms (one training run for each seed), contrasts between the arms' accuracies.

Nothing here imports torch, so that studies can be listed and read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule

if TYPE_CHECKING:
    from vitrail.run import Run


@dataclass(frozen=True)
class Models:
    """Models of about one size for 32 x 32 images, by their part in a study."""

    vit: str
    sl_vit: str
    deit: str
    deit_distilled: str
    mixer: str
    cnn: str


NANO = Models(
    vit="vit_nano_patch8_32",
    sl_vit="sl_vit_nano_patch8_32",
    deit="deit_nano_patch8_32",
    deit_distilled="deit_nano_distilled_patch8_32",
    mixer="mixer_nano8_32",
    cnn="convmixer_128_4_ks3_p4",
)
PICO = Models(
    vit="vit_pico_patch4_32",
    sl_vit="sl_vit_patch4_32",
    deit="deit_pico_patch4_32",
    deit_distilled="deit_pico_distilled_patch4_32",
    mixer="mixer_pico4_32",
    cnn="resnet18",
)


@dataclass(frozen=True)
class Scale:
    """How large a study is: everything that its arms share, but for what is compared."""

    name: str
    models: Models
    images: int
    """Training images, drawn evenly from the classes; each seed draws others. More than there are: all of them."""
    test_images: int
    """Images scored, the same for all arms and seeds. More than there are: all of them."""
    epochs: int
    batch_size: int
    img_size: int = 32
    lr: float = 1e-3
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = 0

    def recipe(self, model: str, *, epochs: float | None = None) -> Recipe:
        """AdamW, cosine after a tenth of warm-up, shift and flip: what every arm starts from, before its one change."""
        whole = max(1, round(self.epochs if epochs is None else epochs))
        return Recipe(
            model=model,
            data=Data(img_size=self.img_size, batch_size=self.batch_size, workers=self.workers, crop_pct=1.0),
            augment=Augment(crop="padded", crop_padding=self.img_size // 8),
            optim=Optim(lr=self.lr, weight_decay=0.05, clip_grad=1.0),
            schedule=Schedule(epochs=whole, warmup_epochs=whole / 10),
            label_smoothing=0.1,
            precision=self.precision,
        )


SMOKE = Scale("smoke", NANO, images=40, test_images=40, epochs=1, batch_size=16)
CPU = Scale("cpu", NANO, images=3_000, test_images=10_000, epochs=20, batch_size=50)
GPU = Scale("gpu", PICO, images=50_000, test_images=10_000, epochs=100, batch_size=256, precision="bf16", workers=8)


@dataclass(frozen=True)
class Arm:
    """One way to train, done once for each seed. What is compared is written in its recipe; source, seed, starting
    weights and teacher are filled in when it is trained."""

    name: str
    """Part of a folder's name: letters, digits, underscores."""
    about: str
    """In words, for the table."""
    recipe: Recipe
    images: int | None = None
    """Training images. None: the scale's."""
    starts_from: str = ""
    """The arm whose weights of the same seed this one goes on with."""
    teacher: str = ""
    """The arm whose model of the same seed this one learns from."""
    trained: bool = True
    """False where nothing depends on the weights, as in a measurement of time."""


@dataclass(frozen=True)
class View:
    """What else a model is asked, beside the classes of the test images: it is `ARM/VIEW` in a contrast's weights."""

    about: str
    """In words, for the table."""
    unit: str
    """Of the numbers: points (of accuracy, 100 is everything), pixels, ..."""
    take: Callable[[Run, Any], Any]
    """(run, the Source it was trained and is scored on) -> numbers: one for each test image, (images,), or one, (1,).
    Asked once for each arm and seed; a model that is not trained is asked without images (None)."""


@dataclass(frozen=True)
class Contrast:
    """A difference: the sum over `weights` of accuracies (`ARM`) or views (`ARM/VIEW`); above 0 is what the claim says.

    `decides` is false for what is told beside the claim: the same at equal compute, or a part of it. A claim that one
    is as good as another concedes a `margin`: the difference then has to be above -margin.
    """

    says: str
    weights: Mapping[str, float]
    decides: bool = True
    margin: float = 0.0
    unit: str = "points"


def above(arm: str, other: str) -> dict[str, float]:
    """The weights of the plain difference `arm` - `other`."""
    return {arm: 1.0, other: -1.0}


def minus(weights: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """The weights of a difference of differences."""
    return {key: weights.get(key, 0.0) - others.get(key, 0.0) for key in [*weights, *others]}


@dataclass(frozen=True)
class Study:
    """A claim and how it is put to the test."""

    name: str
    about: str
    """The docstring of its file: the claim, its source and figures, what is compared, what would count as seen."""
    scales: Mapping[str, Scale] = field(repr=False)
    contrasts: Sequence[Contrast] = field(repr=False)
    arms: Callable[[Scale], Sequence[Arm]] = field(repr=False)
    views: Mapping[str, View] = field(repr=False, default_factory=dict)
    draw: Callable[[Any], bytes] | None = field(repr=False, default=None)
    """`findings.Shown` -> a PNG of its own, where differences do not show all there is to see."""
