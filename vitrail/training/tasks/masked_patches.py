"""Masked patch prediction, self-supervision for a plain ViT (Dosovitskiy et al., 2021, appendix B.1.2).

Of every image exactly round(share P) of its P patches are corrupted, at random. Of these 10 % are replaced by another
patch of the same image, 10 % are left as they are, both rounded, and the rest by a learned mask (78, 10, 10 of 98). All
of this happens to projected patches, before positions are added. One linear layer reads the corrupted places after the
last norm and tells what was there:

    colour   the mean colour at 3 bits a channel, q = floor(8 mean): class 64 q_R + 8 q_G + q_B of 512; cross-entropy
    mean     the mean of each channel, in [0, 1]; squared error
    pixels   all pixels of the patch, in [0, 1], channels last; squared error

Targets come from the augmented image that is fed, before its normalisation. The paper does not say where the other
patch comes from; from the same image, what happens to an image depends on nothing else in its batch. What is random is
drawn for each image from (the step's seed, its number), so it is the same on any number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vitrail.checkpoint import write_file
from vitrail.data.loader import Batch, Loader, hash_seed
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.layers.blocks import init_truncated_normal
from vitrail.recipe import Recipe
from vitrail.run import Run
from vitrail.training.distributed import gathered, world
from vitrail.training.evaluate import no_image

LEVELS = 8  # of a channel: 3 bits
FILE = "masked_patches.safetensors"
logger = logging.getLogger("vitrail")


class Corruption(NamedTuple):
    """What happens to the P patches of B images; n of each are corrupted."""

    masked: Tensor
    """(B, P) bool: replaced by the mask."""
    taken: Tensor
    """(B, P) long: the patch that each place shows, its own where nothing is swapped."""
    chosen: Tensor
    """(B, n) long: the corrupted places, first those masked, then those swapped, then those left as they are."""


class MaskedModel(nn.Module):
    """A ViT, the mask and one linear layer: images and their corruption -> predictions (B, n, outputs)."""

    def __init__(self, model: Any, outputs: int):
        super().__init__()
        self.model = model
        dim = model.pos_embed.shape[-1]
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(dim, outputs)
        init_truncated_normal(self.head)

    def no_weight_decay(self) -> set[str]:
        """The mask, and what the model spares."""
        return {"mask_token", *(f"model.{name}" for name in self.model.no_weight_decay())}

    def forward(self, images: Tensor, masked: Tensor, taken: Tensor, chosen: Tensor) -> Tensor:
        model = self.model
        x = model.patch_embed(images)  # (B, P, D)
        x = x.gather(1, taken[:, :, None].expand_as(x))
        x = torch.where(masked[:, :, None], self.mask_token.to(x.dtype), x)
        x = model.with_positions(x, model.patch_embed.grid(*images.shape[-2:]))
        x = model.norm(model.blocks(x))[:, model.num_prefix_tokens :]
        return self.head(x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[-1])))


class MaskedPatches:
    """The task. Its score is that of held-out images whose corruption depends on their number alone."""

    def __init__(self, recipe: Recipe, source: Source):
        data, self.share, self.target = recipe.data, recipe.masked.share, recipe.masked.target
        self.name, self.seed = recipe.model, recipe.seed
        assert data.mean, "the recipe is not resolved"
        assert data.std, "the recipe is not resolved"
        if self.target == "colour" and len(data.mean) > 4:
            raise UserError(
                f"images of {source.name} have {len(data.mean)} channels, which makes too many colours to be classes; "
                f"use --masked.target mean"
            )
        if recipe.augment.mixup or recipe.augment.cutmix:
            logger.warning("masked_patches mixes no images: mixup and cutmix are left out")
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        self.metric = "patch_accuracy" if self.target == "colour" else "patch_r2"
        self.grid: Callable[[int, int], tuple[int, int]] | None = None

    def module(self, model: nn.Module) -> MaskedModel:
        """`model` with a mask and a head. Raises UserError where it is no plain ViT, or has one patch only."""
        if not all(hasattr(model, part) for part in ("patch_embed", "with_positions", "pos_embed", "blocks", "norm")):
            raise UserError(
                "masked_patches needs a plain ViT, whose patches can be masked before positions are added "
                f"(vit_..., deit_..., deit3_..., simple_vit_...), and {self.name} is none"
            )
        plain: Any = model
        self.grid = plain.patch_embed.grid
        side, channels = plain.config.img_size, plain.config.in_chans
        rows, columns = plain.patch_embed.grid(side, side)
        if rows * columns < 2 or not self._count(rows * columns):
            raise UserError(
                f"--masked.share {self.share} of {rows * columns} patches leaves none to predict or none to see; "
                f"take a larger share, larger images or smaller patches"
            )
        pixels = (side // rows) * (side // columns) * channels
        outputs = {"colour": LEVELS**channels, "mean": channels, "pixels": pixels}[self.target]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return MaskedModel(model, outputs)

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> images, masked, taken, chosen (see Corruption), targets (B, n) long or (B, n, outputs)."""
        seed = int(torch.randint(2**62, ()))
        return self._parts(batch.images, batch.index, seed)

    def loss(self, module: nn.Module, *parts: Tensor) -> Tensor:
        """Mean over the corrupted patches: cross-entropy, or squared error."""
        *inputs, targets = parts
        said = module(*inputs).float()
        if self.target == "colour":
            return F.cross_entropy(said.flatten(0, 1), targets.flatten())
        return F.mse_loss(said, targets)

    @torch.no_grad()
    def score(self, module: nn.Module, loader: Loader, device: torch.device) -> dict[str, Any]:
        """n, patches, loss, damaged, target, and patch_accuracy with the share of the commonest colour as `baseline`,
        or patch_r2, the share of the variance that is explained, with that of the mean, 0, as `baseline`.

        Raises UserError where no image can be read.
        """
        was_training = module.training
        module.eval()
        sums: dict[str, Tensor] = {}
        images, damaged = 0, []  # type: int, list[str]
        for batch in loader.epoch(0):
            damaged += batch.damaged
            images += len(batch.images)
            if len(batch.images):
                *inputs, targets = self._parts(batch.images.to(device), batch.index, 0)
                for key, value in self._sums(module(*inputs).float(), targets).items():
                    sums[key] = sums.get(key, torch.zeros_like(value)) + value
            elif world() > 1:  # where weights are shared out, all processes must take part
                module(*self._parts(no_image(module.model).to(device), torch.zeros(1, dtype=torch.long), 0)[:-1])
        module.train(was_training)
        every = gathered((sums, images, damaged))
        damaged = [name for share in every for name in share[2]]
        found = [share[0] for share in every if share[1]]
        if not found:
            raise UserError(f"none of the {len(damaged)} images held out can be read; `vitrail doctor` says why")
        sums = {key: torch.stack([share[key] for share in found]).sum(0) for key in found[0]}
        n = sum(share[1] for share in every)
        return {"n": n, "damaged": damaged, "target": self.target, **self._scores(sums)}

    # ------------------------------------------------------------------ corruption and targets

    def _count(self, patches: int) -> int:
        return round(self.share * patches)

    def _parts(self, images: Tensor, index: Tensor, seed: int) -> tuple[Tensor, ...]:
        assert self.grid, "module() comes first"
        grid = self.grid(*images.shape[-2:])
        patches = grid[0] * grid[1]
        corruption = [part.to(images.device) for part in corrupt(index.tolist(), patches, self._count(patches), seed)]
        cells = patchify(images * self.std.to(images) + self.mean.to(images), grid)  # (B, P, pixels, C) in [0, 1]
        chosen = corruption[-1][:, :, None, None].expand(-1, -1, *cells.shape[2:])
        return images, *corruption, self._targets(cells.gather(1, chosen))

    def _targets(self, cells: Tensor) -> Tensor:
        if self.target == "pixels":
            return cells.flatten(2)
        colours = cells.mean(dim=2)
        return colour_class(colours) if self.target == "colour" else colours

    def _sums(self, said: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What batches and processes add up, float64 on the CPU."""
        count = torch.tensor(float(targets.shape[0] * targets.shape[1]), dtype=torch.float64)
        if self.target == "colour":
            said, targets = said.flatten(0, 1), targets.flatten()
            loss, right = F.cross_entropy(said, targets, reduction="sum"), (said.argmax(dim=1) == targets).sum()
            colours = targets.bincount(minlength=said.shape[1])
            sums = {"loss": loss, "right": right, "colours": colours}
        else:
            said, targets = said.flatten(0, 1).double(), targets.flatten(0, 1).double()
            sums = {
                "error": (said - targets).square().sum(0),
                "sum": targets.sum(0),
                "squares": targets.square().sum(0),
            }
        return {"patches": count, **{key: value.double().cpu() for key, value in sums.items()}}

    def _scores(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        patches = float(sums["patches"])
        if self.target == "colour":
            scores = {
                "loss": float(sums["loss"]) / patches,
                "patch_accuracy": float(sums["right"]) / patches,
                "baseline": float(sums["colours"].max()) / patches,
            }
        else:
            variance = (sums["squares"] - sums["sum"].square() / patches).sum()
            scores = {
                "loss": float(sums["error"].mean()) / patches,
                "patch_r2": 1 - float(sums["error"].sum() / variance.clamp_min(1e-12)),
                "baseline": 0.0,
            }
        return {"patches": int(patches), **scores}


def corrupt(index: list[int], patches: int, chosen: int, seed: int) -> Corruption:
    """The corruption of the images numbered `index`, `chosen` of their patches each; a function of (seed, number)."""
    generator = torch.Generator()
    orders, steps = [], []
    for number in index:
        generator.manual_seed(hash_seed(seed, number))
        orders.append(torch.randperm(patches, generator=generator)[:chosen])
        steps.append(torch.randint(1, patches, (chosen,), generator=generator))
    places = torch.stack(orders)
    tenth = round(0.1 * chosen)
    masks = chosen - 2 * tenth
    masked = torch.zeros(len(index), patches, dtype=torch.bool).scatter(1, places[:, :masks], True)
    swapped = places[:, masks : masks + tenth]
    others = (swapped + torch.stack(steps)[:, masks : masks + tenth]) % patches  # never itself
    taken = torch.arange(patches).repeat(len(index), 1).scatter(1, swapped, others)
    return Corruption(masked, taken, places)


def patchify(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> the patches of a grid in reading order, (B, P, pixels, C)."""
    x = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, gh, h, gw, w)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def colour_class(colours: Tensor) -> Tensor:
    """Colours (..., C) in [0, 1] -> classes (...), the first channel counting most: 64 q_R + 8 q_G + q_B."""
    levels = (colours * LEVELS).floor().long().clamp(0, LEVELS - 1)
    weights = LEVELS ** torch.arange(colours.shape[-1] - 1, -1, -1, device=colours.device)
    return (levels * weights).sum(dim=-1)


# ---------------------------------------------------------------------- what a run keeps of the task


def save_task(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write mask and head, of the state of a MaskedModel, beside `model.safetensors`, which holds the ViT alone."""
    own = {key: value.cpu().contiguous() for key, value in state.items() if not key.startswith("model.")}
    write_file(folder / FILE, save(own))


def restored(run: Run, task: MaskedPatches) -> MaskedModel:
    """The run's model with the mask and the head that it was trained with. Raises UserError where they are missing."""
    module = task.module(run.model)
    if run.folder is None or not (run.folder / FILE).exists():
        raise UserError(
            f"{run.folder or run.recipe.model} has no {FILE}, which holds what predicts its patches, so it cannot be "
            f"scored; `vitrail train --resume` finishes a run that was cut off"
        )
    try:
        missing, unexpected = module.load_state_dict(load_file(run.folder / FILE), strict=False)
    except Exception as error:  # safetensors has one exception class of its own, for anything malformed
        raise UserError(
            f"{run.folder / FILE} does not fit {task.name}: {' '.join(str(error).split())[:200]}"
        ) from error
    if unexpected or any(not key.startswith("model.") for key in missing):
        raise UserError(f"{run.folder / FILE} holds other things than the mask and the head of {task.name}")
    return module
