"""The one training loop. `fit` starts a run, `resume` goes on with one; both leave a finished run folder.

Everything random is a pure function: weights of the seed, sample order of (seed, epoch), augmentation of (seed, epoch,
index), mixing, dropout and stochastic depth of (seed, step). A checkpoint therefore holds no random state, and on a
CPU a killed and resumed run equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail import checkpoint
from vitrail.data.augment import adapt_channels, train_transform
from vitrail.data.loader import Batch, Loader, hash_seed
from vitrail.data.sources import Source
from vitrail.errors import Interrupted, UserError
from vitrail.models import describe
from vitrail.recipe import Recipe
from vitrail.run import (
    Run,
    best_device,
    build,
    normalisation,
    open_data,
    preprocessing,
    read_recipe,
    save_weights,
    start,
    weights_to_share,
)
from vitrail.training.evaluate import evaluate, score
from vitrail.training.interrupt import Stop, stop_signals
from vitrail.training.limits import check_numbers
from vitrail.training.log import Log, Record
from vitrail.training.optim import learning_rate, moving_average, optimizer, scaled_for_batch
from vitrail.training.progress import Display
from vitrail.training.tasks.classify import Classify

MOST_DAMAGED = 0.05
logger = logging.getLogger("vitrail")


def fit(recipe: Recipe, out: Path) -> Path:
    """Train `recipe` into the new run folder `out` and return it.

    Raises UserError for anything the user can mend (before `out` is made where possible, at the step where a loss is
    not finite), and Interrupted after Ctrl-C or SIGTERM, with a checkpoint written.
    """
    if (out / "recipe.json").exists():
        start(out, recipe, [])  # says that the folder is taken, before the data is read
    check_numbers(recipe)
    source = open_data(recipe)
    recipe = resolve(recipe, source)
    trainer = Trainer(recipe, out, source)
    start(out, recipe, source.classes)
    return trainer.train(None)


def resume(out: Path) -> Path:
    """Go on with the run in `out` from its last whole checkpoint; a finished run is returned as it is."""
    recipe, classes = read_recipe(out)
    if (out / "final.json").exists() and (out / "model.safetensors").exists():
        logger.warning("%s is finished; nothing is left to train", out)
        return out
    source = open_data(recipe)
    if source.classes != classes:
        raise UserError(f"{recipe.data.source} no longer has the classes that {out} was started with; restore the data")
    checkpoint.clean(out)
    state = checkpoint.load(out / "checkpoints")
    if state is not None:  # it holds all weights: those that the run started from may be gone by now
        recipe = replace(recipe, pretrained=False, initial_checkpoint="")
    return Trainer(recipe, out, source).train(state)


def resolve(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with nothing left open: image size, channels, mean and std, learning rate for its batch size."""
    if source.multi_label:
        raise UserError(
            f"{recipe.data.source} has several labels an image, and this loss trains one; give one label each"
        )
    model = recipe.model
    if ":" in model:  # a file of one's own is found again from any folder
        path, _, name = model.rpartition(":")
        model = f"{Path(path).resolve()}:{name}"
    if recipe.drop_path and "drop_path_rate" not in describe(model)["config"]:
        logger.warning("%s has no stochastic depth: drop_path %g is left out", model, recipe.drop_path)
        recipe = replace(recipe, drop_path=0.0)
    in_chans = recipe.data.in_chans or source.in_chans
    adapt_channels(torch.empty(source.in_chans, 1, 1), in_chans)  # refuses what no image can be turned into
    mean, std = normalisation(recipe, in_chans)
    with torch.device("meta"):
        default = replace(recipe, model=model, pretrained=False, initial_checkpoint="")
        # names a wrong model or size before anything is written
        config: Any = build(default, len(source.classes)).config
    data = replace(recipe.data, img_size=config.img_size, in_chans=in_chans, mean=mean, std=std)
    return scaled_for_batch(replace(recipe, model=model, data=data))


class Trainer:
    """A run in memory: model, optimiser, moving average and where it stands."""

    def __init__(self, recipe: Recipe, out: Path, source: Source):
        data = recipe.data
        assert data.img_size, "the recipe is not resolved"
        assert data.mean, "the recipe is not resolved"
        assert data.std, "the recipe is not resolved"
        self.recipe, self.out, self.source = recipe, out, source
        self.device = best_device()
        self.task = Classify(recipe, len(source.classes))
        self.split = "val" if "val" in source.splits else "test"
        train, held_out = source.splits["train"], source.splits[self.split]
        transform = train_transform(
            recipe.augment,
            img_size=data.img_size,
            mean=data.mean,
            std=data.std,
            interpolation=data.interpolation,
            crop_pct=data.crop_pct,
        )
        loader = partial(
            Loader,
            batch_size=data.batch_size,
            workers=data.workers,
            seed=recipe.seed,
            num_classes=len(source.classes),
        )
        # a last batch that is not full would weigh its images more; a set smaller than one batch is that batch
        self.loader = loader(train, transform, shuffle=True, drop_last=len(train) >= data.batch_size)
        self.watched = loader(held_out, preprocessing(data), shuffle=False)
        self.model = build(recipe, len(source.classes)).to(self.device)
        self.compiled: Any = torch.compile(self.model) if recipe.compile else self.model
        self.optimizer = optimizer(self.model, recipe.optim)
        self.ema = moving_average(self.model, recipe.ema) if recipe.ema else None
        self.epoch, self.step, self.history = 0, 0, []  # type: tuple[int, int, list[Record]]
        self.losses = torch.zeros(2, dtype=torch.float64)  # of this epoch: sum over images, images
        self.damaged: set[str] = set()
        self.images_per_s = 0.0  # of this epoch, so far

    # ------------------------------------------------------------------ the state that resumes

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes next."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "images": len(self.source.splits["train"]),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "damaged": sorted(self.damaged),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises UserError where it is that of another model, recipe or set of images."""
        try:
            self.model.load_state_dict(state["model"])
            if state["optimizer"]["param_groups"][0].keys() != self.optimizer.param_groups[0].keys():
                raise ValueError(f"its optimiser is not {self.recipe.optim.name}")  # torch would take it as it is
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"the checkpoint in {self.out} was written by another recipe than its recipe.json "
                f"({' '.join(str(error).split())[:200]}); put the right one back, or train anew with another --out"
            ) from error
        images = len(self.source.splits["train"])
        if images != state["images"]:
            raise UserError(
                f"{self.source.name} has {images:,} images to train and had {state['images']:,} when {self.out} was "
                f"started, so the same run cannot go on; restore the data, or train anew with another --out"
            )
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.losses, self.damaged = state["losses"], set(state["damaged"])

    def save(self) -> Path:
        """Write a checkpoint."""
        self.saved = time.monotonic()
        return checkpoint.save(self.out / "checkpoints", self.step, self.state())

    # ------------------------------------------------------------------ the loop

    def train(self, state: dict[str, Any] | None) -> Path:
        """From the state of a checkpoint, or from the start, to a finished run folder."""
        if state is not None:
            self.restore(state)
        epochs, steps = self.recipe.schedule.epochs, len(self.loader)
        log = Log(self.out, self.recipe, self.history)
        self.saved = time.monotonic()
        with stop_signals() as stop, Display(epochs, epochs * steps, self.step) as display, contextlib.closing(log):
            self.announce(display, state is not None)
            try:
                while self.epoch < epochs:
                    self.train_epoch(stop, display)
                    record = self.finish_epoch()
                    log.write(record)
                    display.epoch(record)
                    self.save()
                    self.stop_if_asked(stop)
                display.say(f"scoring the {self.source.name} images held out")
                self.finish()
            except RuntimeError:
                self.stop_if_asked(stop)  # the signal has ended the loader's workers too
                raise
        return self.out

    def announce(self, display: Display, resumed: bool) -> None:
        """What is about to be trained, in a few lines."""
        recipe, split = self.recipe, self.source.splits
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        held_out = ", ".join(f"{len(split[name]):,} to {name}" for name in ("val", "test") if name in split)
        display.say(
            f"{recipe.model} ({parameters:,} parameters) on {self.source.name}: "
            f"{len(split['train']):,} images to train, {held_out}, {len(self.source.classes)} classes"
        )
        for note in self.source.notes:
            display.say(note)
        display.say(
            f"batch {recipe.data.batch_size}, {recipe.optim.name}, peak learning rate {recipe.optim.lr:g}, "
            f"{recipe.schedule.epochs} epochs, seed {recipe.seed}, {self.device}, into {self.out}"
            + (f", resumed at step {self.step}" if resumed else "")
        )

    def train_epoch(self, stop: Stop, display: Display) -> None:
        """From where the epoch stands to its end."""
        self.model.train()
        self.compiled.train()
        start = self.step - self.epoch * len(self.loader)
        began, seen = time.monotonic(), 0
        for batch in self.loader.epoch(self.epoch, start):
            self.name_damaged(batch.damaged)
            self.refuse_damaged()
            if len(batch.images):
                loss = self.train_step(batch)
                self.losses += torch.tensor([loss * len(batch.images), len(batch.images)], dtype=torch.float64)
                seen += len(batch.images)
                self.images_per_s = seen / (time.monotonic() - began)
                display.step(self.epoch, loss, self.images_per_s)
            self.step += 1
            self.stop_if_asked(stop)
            if time.monotonic() - self.saved > 60 * self.recipe.checkpoint_minutes:
                self.save()

    def train_step(self, batch: Batch) -> float:
        """One update from one batch, in micro-batches where the recipe accumulates. Returns the mean loss.

        Raises UserError before the update where loss or gradient is not finite.
        """
        recipe = self.recipe
        torch.manual_seed(hash_seed(recipe.seed, self.step))
        lr = learning_rate(self.step, len(self.loader), recipe.optim.lr, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images, targets = self.task.prepare(batch.images.to(self.device), batch.labels.to(self.device))
        total = torch.zeros((), device=self.device)
        parts = zip(images.chunk(recipe.optim.accumulate), targets.chunk(recipe.optim.accumulate), strict=True)
        for part, target in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = self.task.loss(self.compiled, part, target) * (len(part) / len(images))
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optim.clip_grad or math.inf)
        self.refuse_divergence(float(total), float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update_parameters(self.model)
        return float(total)

    def finish_epoch(self) -> Record:
        """Score the held-out images and close the epoch's books."""
        scored = score(self.averaged(), self.watched, self.device)
        self.epoch += 1
        self.name_damaged(scored.damaged)
        self.refuse_damaged()
        record: Record = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.losses[0] / self.losses[1]) if self.losses[1] else math.nan,
            "split": self.split,
            "val_loss": scored.loss(),
            "val_top1": scored.top(1),
            "images_per_s": round(self.images_per_s, 1),
            "damaged": len(self.damaged),
        }
        self.losses.zero_()
        self.history.append(record)
        return record

    def finish(self) -> None:
        """Write the weights, then the final scores: a run is finished when `final.json` exists."""
        ema = self.ema.state_dict() if self.ema else None
        save_weights(self.out, weights_to_share(self.model.state_dict(), ema))
        run = Run(self.averaged().eval(), self.recipe, self.source.classes, f"trained in {self.out}", self.out)
        final = evaluate(run, source=self.source)
        self.name_damaged(final["damaged"])
        for name, value in (("damaged.json", sorted(self.damaged)), ("final.json", final)):
            checkpoint.write_file(self.out / name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def averaged(self) -> nn.Module:
        """The model that is evaluated: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    # ------------------------------------------------------------------ what can go wrong

    def name_damaged(self, names: list[str]) -> None:
        """Say each damaged file once."""
        for name in names:
            if name not in self.damaged:
                self.damaged.add(name)
                logger.warning("left out: %s", name)

    def refuse_damaged(self) -> None:
        """Raises UserError where more than 5 % of the images that an epoch reads are damaged."""
        images = len(self.source.splits["train"]) + len(self.source.splits[self.split])
        if len(self.damaged) > max(MOST_DAMAGED * images, 1):
            raise UserError(
                f"{len(self.damaged)} of {images:,} images of {self.source.name} are damaged, more than "
                f"{MOST_DAMAGED:.0%}; `vitrail doctor {self.recipe.data.source}` lists them all"
            )

    def refuse_divergence(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
        raise UserError(
            f"{what} at step {self.step} (epoch {self.epoch + 1}), and the run stopped before that update; "
            f"try a lower --optim.lr than {self.recipe.optim.lr:g}, or --optim.clip-grad 1"
        )

    def stop_if_asked(self, stop: Stop) -> None:
        if stop.signum is not None:
            path = self.save()
            raise Interrupted(stop.signum, f"stopped at step {self.step}, saved {path}; --resume {self.out} goes on")
