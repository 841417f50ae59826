"""Learning from a teacher as well as from the labels (Touvron et al., 2021, DeiT, section 4).

    soft   (1 - alpha) L(z, y) + alpha tau^2 KL(softmax(t / tau) || softmax(z / tau)), mean over the images
    hard   (1 - alpha) L(z, y) + alpha CE(z, argmax t), the teacher's class not smoothed

z are the student's logits, t the teacher's, L the loss of the recipe (class weights and smoothing belong to it alone).
A model with a distillation token gives a pair: the class head takes the first term, the distillation head the second.
The teacher sees the student's own images, augmented and mixed, in its own normalisation and size. DeiT's released code
divides KL by the number of classes too; here, as in the paper, only by that of the images.

Where nothing about an image is random, the teacher says the same of it in every epoch. It is then asked once for the
whole training split, and what it said is kept in `teacher.safetensors` in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vitrail.checkpoint import write_file
from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.recipe import Augment, Data, Recipe
from vitrail.run import Run, load, preprocessing
from vitrail.training.distributed import is_main, main_first
from vitrail.training.evaluate import outputs_of
from vitrail.training.tasks.classify import Classify

FILE = "teacher.safetensors"
logger = logging.getLogger("vitrail")


class Teacher:
    """A trained model that answers for another: the student's images -> its logits in the order of the student's
    classes. It is never trained."""

    def __init__(self, run: Run, recipe: Recipe, source: Source, device: torch.device):
        if run.recipe.task != "classify":
            raise UserError(
                f"the teacher {recipe.distill.teacher} was trained for {run.recipe.task}; "
                f"it must give one class an image"
            )
        self.order = outputs_of(run, source, "teacher", "use it")
        self.model = run.model.to(device).eval().requires_grad_(False)
        own, student = run.recipe.data, recipe.data
        assert own.img_size, "the teacher's recipe is not resolved"
        if own.in_chans != student.in_chans:
            raise UserError(
                f"the teacher {recipe.distill.teacher} sees images of {own.in_chans} channels and the student of "
                f"{student.in_chans}; set --data.in-chans {own.in_chans}"
            )
        self.side = own.img_size
        (mean, std), (own_mean, own_std) = _normalisation(student, device), _normalisation(own, device)
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
        self.autocast = torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, S, S), normalised for the student -> (B, K) float32."""
        images = images * self.scale + self.shift
        if images.shape[-1] != self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True)
        with self.autocast:
            return self.model(images).float()[:, self.order]

    def digest(self) -> str:
        """A hash of its weights."""
        return hashlib.sha256(save({key: value.cpu() for key, value in self.model.state_dict().items()})).hexdigest()


class Distilled(Classify):
    """Classify with a teacher."""

    def __init__(self, recipe: Recipe, source: Source, device: torch.device, folder: Path):
        super().__init__(recipe, source)
        self.recipe, self.source, self.device, self.folder = recipe, source, device, folder
        self.distill = recipe.distill
        if recipe.task != "classify":
            raise UserError(
                f"a teacher gives one class an image, and the task is {recipe.task}; leave --distill.teacher away"
            )
        named = self.distill.teacher
        self.teacher = Teacher(load(named, pretrained=not Path(named).is_dir()), recipe, source, device)
        self.known: Tensor | None = None

    def module(self, model: nn.Module) -> nn.Module:
        """The model, whose distillation token, where it has one, now gives logits of its own in training."""
        if hasattr(model, "set_distilled_training"):
            model.set_distilled_training(True)  # type: ignore[operator]
        return model

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> mixed images (B, C, S, S), targets (B, K), the teacher's logits (B, K)."""
        images, targets = super().prepare(batch)
        return images, targets, self._said(images, batch.index)

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        """Mean over the images of both terms, in float32."""
        images, targets, teacher = parts
        said = module(images)
        labels, taught = said if isinstance(said, tuple) else (said, said)
        alpha = self.distill.alpha
        return (1 - alpha) * self.label_loss(labels, targets) + alpha * self.teacher_loss(taught.float(), teacher)

    def teacher_loss(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Logits of both (B, K) -> scalar."""
        if self.distill.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=1))
        tau = self.distill.tau
        said, wanted = (F.log_softmax(each / tau, dim=1) for each in (logits, teacher))
        return tau**2 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)

    # ------------------------------------------------------------------ what the teacher said once

    def _said(self, images: Tensor, index: Tensor) -> Tensor:
        if not nothing_random(self.recipe.augment):
            return self.teacher(images)
        if self.known is None:
            with main_first():  # the others read what it has written
                self.known = self._read()
                if self.known is None:
                    self.known = self._ask_once()
        rows = self.known[index.cpu()]
        if rows.isnan().any():  # of an image that could not be read then
            return self.teacher(images)
        return rows.to(images.device)

    def _ask_once(self) -> Tensor:
        """The teacher's logits (N, K) of all training images by their number, NaN for the damaged; kept in a file."""
        split, data = self.source.splits["train"], self.recipe.data
        logger.info("asking the teacher %s once for all %d training images", self.distill.teacher, len(split))
        batches = Loader(
            split,
            preprocessing(data),
            batch_size=data.batch_size,
            seed=self.recipe.seed,
            shuffle=False,
            workers=data.workers,
            num_classes=self.num_classes,
            device=self.device,
        )
        known = torch.full((len(split), self.num_classes), torch.nan)
        for batch in batches.epoch(0):
            if len(batch.images):
                known[batch.index] = self.teacher(batch.images.to(self.device)).cpu()
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / FILE, save({"logits": known}, metadata={"key": self._key()}))
        return known

    def _read(self) -> Tensor | None:
        """What is kept, where it is what this teacher says of these images as this recipe shows them."""
        try:
            with safe_open(self.folder / FILE, "pt") as file:
                return file.get_tensor("logits") if (file.metadata() or {}).get("key") == self._key() else None
        except (OSError, SafetensorError):
            return None  # there is none, or half of one from elsewhere: the teacher is asked again

    def _key(self) -> str:
        split, data = self.source.splits["train"], self.recipe.data
        shown: list[Any] = [data.img_size, data.in_chans, data.mean, data.std, data.interpolation, data.crop_pct]
        names = [split.name(i) for i in range(len(split))]
        parts = [self.teacher.digest(), self.recipe.precision, self.source.name, self.source.classes, shown, names]
        return hashlib.sha256(json.dumps(parts).encode(errors="backslashreplace")).hexdigest()


def _normalisation(data: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, (C, 1, 1) each."""
    assert data.mean, "the recipe is not resolved"
    assert data.std, "the recipe is not resolved"
    return torch.tensor(data.mean, device=device)[:, None, None], torch.tensor(data.std, device=device)[:, None, None]


def nothing_random(augment: Augment) -> bool:
    """Whether every epoch shows the same images."""
    mixing = (augment.mixup or augment.cutmix) and augment.mix_prob
    changes = (augment.flip, augment.rotate, augment.rand_augment, augment.color_jitter, augment.erasing, mixing)
    return augment.crop == "none" and augment.auto_augment == "none" and not any(changes)
