"""The one training loop. `fit` starts a run, `resume` goes on with one; both leave a finished run folder.

Everything random is a pure function: weights of the seed, sample order of (seed, epoch), augmentation of (seed, epoch,
index, copy), mixing, dropout and stochastic depth of (seed, step). A checkpoint therefore holds no random state, and on
a CPU a killed and resumed run equals the uninterrupted one bit for bit. With many processes all of them run this loop
in step; the first one prints and writes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vitrail import checkpoint
from vitrail.data.augment import train_transform
from vitrail.data.cache import kept
from vitrail.data.loader import Batch, Loader, WorkerDied, hash_seed
from vitrail.data.sources import Source
from vitrail.errors import Interrupted, Lost, UserError
from vitrail.recipe import Recipe
from vitrail.run import (
    Run,
    best_device,
    build,
    open_data,
    own_weights,
    preprocessing,
    read_recipe,
    save_weights,
    start,
)
from vitrail.training.allocator import keep_freed_memory
from vitrail.training.damage import Damaged
from vitrail.training.distributed import (
    greatest,
    is_main,
    main_first,
    process_group,
    rank,
    told,
    total,
    world,
)
from vitrail.training.evaluate import numbers
from vitrail.training.interrupt import Asked, Heeding, Stop, stop_signals
from vitrail.training.learner import Learner
from vitrail.training.limits import check_numbers
from vitrail.training.log import Log, Record
from vitrail.training.progress import Display
from vitrail.training.resolve import resolve
from vitrail.training.schedule import learning_rate
from vitrail.training.tasks import choose_task
from vitrail.training.tasks.masked_patches import MaskedPatches, save_task

logger = logging.getLogger("vitrail")


def fit(recipe: Recipe, out: Path) -> Path:
    """Train `recipe` into the new run folder `out` and return it.

    Raises UserError for anything the user can mend (before `out` is made where possible, at the step where a loss is
    not finite), and Interrupted after Ctrl-C or SIGTERM, with a checkpoint written. A process group that torchrun has
    restarted goes on with the run that it had begun.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (out / "recipe.json").exists():
        return resume(out)
    with process_group(recipe.sharded):
        with main_first():
            if (out / "recipe.json").exists():
                start(out, recipe, [])  # says that the folder is taken, before the data is read
            check_numbers(recipe)
            source = open_data(recipe)
            recipe = resolve(recipe, source)
        trainer = Trainer(recipe, out, source)
        with alone(out):
            with main_first():
                if is_main():
                    start(out, recipe, source.classes)
            return trainer.train(None)


def resume(out: Path) -> Path:
    """Go on with the run in `out` from its last whole checkpoint; a finished run is returned as it is."""
    recipe, classes = read_recipe(out)
    if (out / "final.json").exists() and (out / "model.safetensors").exists():
        logger.warning("%s is finished; nothing is left to train", out)
        return out
    with process_group(recipe.sharded), alone(out):
        with main_first():
            source = open_data(recipe)
            if source.classes != classes:
                raise UserError(
                    f"{recipe.data.source} no longer has the classes that {out} was started with; restore the data"
                )
            last = checkpoint.newest(out / "checkpoints")
        if last is not None:  # it holds all weights: those that the run started from may be gone by now
            recipe = replace(recipe, pretrained=False, initial_checkpoint="")
        return Trainer(recipe, out, source).train(last)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Have the run folder for these processes alone. Raises UserError on the main one where others have it."""
    with checkpoint.lock(out) if is_main() else contextlib.nullcontext():
        yield


class Trainer:
    """A run in memory: its data, what learns, and where it stands."""

    def __init__(self, recipe: Recipe, out: Path, source: Source):
        data = recipe.data
        assert data.img_size, "the recipe is not resolved"
        assert data.mean, "the recipe is not resolved"
        assert data.std, "the recipe is not resolved"
        self.recipe, self.out, self.source = recipe, out, source
        self.device = best_device()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.split = "val" if "val" in source.splits else "test"
        if data.batch_size < world():
            raise UserError(
                f"a batch of {data.batch_size} cannot be shared by {world()} processes; raise --data.batch-size"
            )
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
            rank=rank(),
            world=world(),
            device=self.device,
        )
        train, held_out = source.splits["train"], source.splits[self.split]
        # a last batch that is not full would weigh its images more; a set smaller than one batch is that batch
        full = len(train) >= data.batch_size
        self.loader = loader(
            kept(train, data.img_size, world()),
            transform,
            shuffle=True,
            drop_last=full,
            repeats=data.repeats,
            balanced=data.balanced,
            ahead=True,
        )
        self.watched = loader(kept(held_out, data.img_size, world()), preprocessing(data), shuffle=False, ahead=True)
        self.last_split, self.last = self.split, self.watched
        if self.split == "val" and "test" in source.splits:
            self.last_split, self.last = "test", loader(source.splits["test"], preprocessing(data), shuffle=False)
        with main_first():  # what the first one downloads, the others find
            self.task = choose_task(recipe, source, self.device, out)
            self.model = build(recipe, len(source.classes))
        several = torch.zeros(2, len(source.classes)) if source.multi_label else torch.zeros(2, dtype=torch.long)
        self.learner = Learner(recipe, self.task, self.model, self.device, several)
        self.epoch, self.step, self.history = 0, 0, []  # type: tuple[int, int, list[Record]]
        self.losses = torch.zeros(2, dtype=torch.float64)  # of this epoch: sum over images, images
        self.damaged = Damaged(source, data.source, len(train) + len(held_out))
        self.images_per_s = 0.0  # of this epoch, so far
        self.whole = True  # whether the weights are those of self.step, and may be saved

    # ------------------------------------------------------------------ the state that resumes

    def restore(self, last: Path) -> None:
        """From the checkpoint in `last`. Raises UserError where it is of another model, recipe or set of images."""
        state = checkpoint.read(last)
        try:
            if self.recipe.sharded:
                from vitrail.training import sharded

                sharded.load(last, self.learner, state)
            else:
                self.learner.restore(state)
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
        self.losses, self.damaged.names = state["losses"], set(state["damaged"])

    def save(self) -> Path:
        """Write a checkpoint: everything that decides what comes next."""
        self.saved = time.monotonic()
        self.damaged.share()
        state = {
            "images": len(self.source.splits["train"]),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "damaged": sorted(self.damaged.names),
        }
        folder = self.out / "checkpoints"
        if self.recipe.sharded:
            from vitrail.training import sharded

            return sharded.save(folder, self.step, state, self.learner)
        path = checkpoint.save(folder, self.step, state | self.learner.state()) if is_main() else None
        return told(path)

    # ------------------------------------------------------------------ the loop

    def train(self, last: Path | None) -> Path:
        """From a checkpoint, or from the start, to a finished run folder."""
        with contextlib.ExitStack() as held:
            if last is not None:
                self.restore(last)
            epochs, steps = self.recipe.schedule.epochs, len(self.loader)
            log = Log(self.out, self.recipe, self.history) if is_main() else None
            if log is not None:
                held.enter_context(contextlib.closing(log))
            self.saved = time.monotonic()
            stop = held.enter_context(stop_signals())
            display = held.enter_context(Display(epochs, epochs * steps, self.step, quiet=not is_main()))
            held.enter_context(self.failures(stop))
            if self.epoch < epochs:
                self.loader.begin(self.epoch, self.step - self.epoch * steps)
                self.watched.begin(0)
            self.announce(display, last is not None)
            while self.epoch < epochs:
                self.train_epoch(stop, display)
                record = self.finish_epoch(stop)
                if log is not None:
                    log.write(record)
                display.epoch(record)
                path = self.save()
                self.stop_if_asked(stop, path)
            display.say(f"scoring the {self.source.name} images held out")
            self.finish(stop)
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
        size, parts, processes = recipe.data.batch_size, recipe.optim.accumulate, world()
        share = f" = {processes} processes x {size / processes:g}" if processes > 1 else ""
        share += f", in {parts} parts" if parts > 1 else ""
        display.say(
            f"batch {size}{share}, {recipe.optim.name}, peak learning rate {recipe.optim.lr:g}, "
            f"{recipe.schedule.epochs} epochs, seed {recipe.seed}, {self.device}, into {self.out}"
            + (f", resumed at step {self.step}" if resumed else "")
        )

    def train_epoch(self, stop: Stop, display: Display) -> None:
        """From where the epoch stands to its end."""
        self.learner.train(frozen=self.epoch < self.recipe.schedule.frozen_epochs)
        start = self.step - self.epoch * len(self.loader)
        began, seen = time.monotonic(), 0.0
        for batch in self.loader.epoch(self.epoch, start):
            self.damaged.name(batch.damaged)
            self.damaged.refuse_too_many()
            images = float(total(torch.tensor(float(len(batch.images)))))
            self.whole = False
            if images:
                loss = self.update(batch, self.rate(self.step))
                self.losses += torch.tensor([loss * images, images], dtype=torch.float64)
                seen += images
                self.images_per_s = seen / (time.monotonic() - began)
                display.step(self.epoch, loss, self.images_per_s)
            self.step += 1
            self.whole = True
            self.stop_if_asked(stop)

    def rate(self, step: int) -> float:
        """The learning rate of an update, before the factors of layers."""
        return learning_rate(step, len(self.loader), self.recipe.optim.lr, self.recipe.schedule)

    def update(self, batch: Batch, lr: float) -> float:
        """One update from one batch at the rate `lr`. Returns the mean loss over the images of all processes.

        Raises UserError before the update where loss or gradient is not finite.
        """
        loss, norm = self.learner.gradients(batch, lr, hash_seed(self.recipe.seed, self.step))
        wrong = self.learner.diverged(loss, norm)
        if wrong is not None:
            raise UserError(
                f"{wrong} at step {self.step} (epoch {self.epoch + 1}), and the run stopped before that update; "
                f"try a lower --optim.lr than {self.recipe.optim.lr:g}, or --optim.clip-grad 1"
            )
        self.learner.apply()
        return loss

    def finish_epoch(self, stop: Stop) -> Record:
        """Score the held-out images, in the precision of training, and close the epoch's books."""
        with self.heeding(stop) as heed, self.learner.averaged(), self.learner.autocast():
            scored = self.task.score(self.learner.module, heed(self.watched), self.device)
        self.epoch += 1
        self.damaged.name(scored["damaged"])
        self.damaged.share()
        self.damaged.refuse_too_many()
        metric = self.task.metric
        record: Record = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.rate(self.step - 1),
            "train_loss": float(self.losses[0] / self.losses[1]) if self.losses[1] else math.nan,
            "split": self.split,
            "metric": metric,
            "val_loss": scored["loss"],
            f"val_{metric}": scored[metric],
            "images_per_s": round(self.images_per_s, 1),
            "damaged": len(self.damaged.names),
        }
        self.losses.zero_()
        self.history.append(record)
        return record

    def finish(self, stop: Stop) -> None:
        """Write the weights, then the final scores: a run is finished when `final.json` exists."""
        said = {"run": str(self.out), "weights": f"trained in {self.out}", "data": self.source.name}
        with self.heeding(stop) as heed, self.learner.averaged():
            state = self.learner.whole()
            if is_main():
                save_weights(self.out, own_weights(state, self.recipe))
            if isinstance(self.task, MaskedPatches):
                if is_main():
                    save_task(self.out, state)
                scores = self.task.score(self.learner.module, heed(self.last), self.device)
                scores["metric"] = self.task.metric
            else:
                run = Run(self.learner.module, self.recipe, self.source.classes, said["weights"], self.out)
                scores = numbers(run, self.source, heed(self.last), self.last_split)
        final = said | {"split": self.last_split} | scores
        self.damaged.name(final["damaged"])
        self.damaged.share()
        if is_main():
            for name, value in (("damaged.json", sorted(self.damaged.names)), ("final.json", final)):
                checkpoint.write_file(self.out / name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    # ------------------------------------------------------------------ what can go wrong

    def stop_if_asked(self, stop: Stop, saved: Path | None = None) -> None:
        """Stop where any process was told to; write a checkpoint where one is due and none of this step is `saved`."""
        due = time.monotonic() - self.saved > 60 * self.recipe.checkpoint_minutes
        signum, due_now = greatest(stop.signum or 0, int(is_main() and due and saved is None))
        if signum or due_now:
            saved = saved or self.save()
        if signum:
            said = f"stopped at step {self.step}, saved {saved}; --resume {self.out} goes on" if is_main() else ""
            raise Interrupted(signum, said)

    @contextlib.contextmanager
    def heeding(self, stop: Stop) -> Iterator[Callable[[Loader], Any]]:
        """What makes a loader heed `stop`. Once the module has its own weights back, the run is saved and ends."""
        try:
            yield lambda loader: Heeding(loader, lambda: greatest(stop.signum or 0)[0] > 0)
        except Asked:
            self.stop_if_asked(stop)

    @contextlib.contextmanager
    def failures(self, stop: Stop) -> Iterator[None]:
        """How the end of other processes ends this one: of a worker of the loader, of a peer."""
        try:
            yield
        except WorkerDied:
            if world() == 1 and self.whole:
                self.stop_if_asked(stop)  # a signal to all processes of the run ended the worker too
                self.save()
            raise
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
                raise Lost from error
            raise
