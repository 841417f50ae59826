"""The run folder, or a model's name: the only thing that is passed between commands.

recipe.json  classes.json  model.safetensors     what is shared
log.jsonl  final.json  report.html  events.*     what is looked at
checkpoints/                                     what resumes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vitrail import checkpoint
from vitrail.data.limit import limited
from vitrail.data.sources import Source, open_source
from vitrail.errors import UserError, did_you_mean
from vitrail.models import create_model, list_models
from vitrail.recipe import Data, Recipe, from_json, to_json
from vitrail.weights import imagenet_classes, official
from vitrail.weights.unfilled import unfilled

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Run(NamedTuple):
    """A model that is ready to be used, and what it needs to know about its images."""

    model: nn.Module
    """In eval mode, on the CPU."""
    recipe: Recipe
    """Resolved: recipe.data has img_size, in_chans, mean and std."""
    classes: list[str]
    weights: str
    """Where the weights come from, in words."""
    folder: Path | None
    """The run's folder, None for a model's name."""


def load(run: str | Path | Run, *, pretrained: bool = False) -> Run:
    """Open a run folder (`runs/digits`) or a model's name (`vit_tiny_patch16_224`: random, or official weights).

    A folder whose training was cut off gives the weights of its last checkpoint. Raises UserError where there is
    neither such a folder nor such a model.
    """
    if isinstance(run, Run):
        return run
    folder = Path(run)
    if folder.is_dir() and pretrained:
        raise UserError(f"{folder} is a run with weights of its own; leave --pretrained away, or name a model")
    if folder.is_dir():
        return _load_folder(folder)
    name = str(run)
    if ":" not in name and name not in list_models():
        raise UserError(f"'{name}' is neither a run folder nor a model{did_you_mean(name, list_models())}")
    return _load_name(name, pretrained)


def build(recipe: Recipe, num_classes: int) -> nn.Module:
    """The model of a resolved recipe, with random weights decided by its seed, or with the weights it starts from."""
    rates = {"drop_path_rate": recipe.drop_path, "drop_rate": recipe.dropout, "patch_drop_rate": recipe.patch_drop}
    changes = {name: rate for name, rate in rates.items() if rate}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = create_model(
            recipe.model,
            pretrained=recipe.initial_checkpoint or recipe.pretrained,
            num_classes=num_classes,
            in_chans=recipe.data.in_chans,
            img_size=recipe.data.img_size,
            **changes,
        )
    if recipe.head_bias is not None:
        for head in model.heads():
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, recipe.head_bias)
    return model


def best_device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def open_data(recipe: Recipe) -> Source:
    """The images of a recipe, split as its seed decides, and no more of them than its limit."""
    data = recipe.data
    source = open_source(data.source, seed=recipe.seed, val_fraction=data.val_fraction)
    return source if data.limit is None else limited(source, data.limit, recipe.seed)


def normalisation(recipe: Recipe, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a recipe that leaves them open: the pretrained weights' own, else ImageNet's, 0.5 if not RGB."""
    weights = official(recipe.model.rpartition(":")[2]) if recipe.pretrained or recipe.initial_checkpoint else None
    if in_chans != 3:
        mean, std = (0.5,) * in_chans, (0.5,) * in_chans
    else:
        mean, std = (weights.mean, weights.std) if weights else (IMAGENET_MEAN, IMAGENET_STD)
    return recipe.data.mean or mean, recipe.data.std or std


def preprocessing(data: Data) -> Callable[[Tensor], Tensor]:
    """How a run sees an image when it is scored or used: uint8 (C, H, W) -> float32 (C, S, S), normalised."""
    from vitrail.data.augment import eval_transform  # brings torchvision, for which who loads a model need not wait

    assert data.img_size, "the recipe is not resolved"
    assert data.mean, "the recipe is not resolved"
    assert data.std, "the recipe is not resolved"
    return eval_transform(
        img_size=data.img_size,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
    )


def probabilities(recipe: Recipe, logits: Tensor) -> Tensor:
    """(B, K) -> the same: of one class against the others, or of each class by itself where an image has several."""
    return logits.sigmoid() if recipe.task == "multilabel" else logits.softmax(dim=-1)


def start(folder: Path, recipe: Recipe, classes: list[str]) -> None:
    """Make the run folder, with its recipe and classes. Raises UserError where it is taken or cannot be made."""
    if (folder / "recipe.json").exists():
        raise UserError(f"{folder} already holds a run; continue it with --resume {folder}, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    checkpoint.write_file(folder / "classes.json", json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
    checkpoint.write_file(folder / "recipe.json", to_json(recipe))


def save_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors`."""
    checkpoint.write_file(folder / "model.safetensors", save({key: value.contiguous() for key, value in state.items()}))


def read_recipe(folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe and the classes of a run folder. Raises UserError where it is none."""
    try:
        recipe = from_json((folder / "recipe.json").read_text(encoding="utf-8"), folder / "recipe.json")
        return recipe, json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a run folder: it has no {Path(error.filename).name}") from error
    except ValueError as error:
        raise UserError(f"{folder} is not a whole run folder: {error}") from error


def _load_folder(folder: Path) -> Run:
    recipe, classes = read_recipe(folder)
    file = folder / "model.safetensors"
    with unfilled():
        model = create_model(
            recipe.model, num_classes=len(classes), in_chans=recipe.data.in_chans, img_size=recipe.data.img_size
        )
    if file.exists():
        try:
            state, weights = load_file(file), f"trained in {folder}"
        except Exception as error:  # safetensors has one exception class of its own, for anything malformed
            raise UserError(
                f"{file} is damaged ({error}); delete it, and `vitrail train --resume {folder}` writes it anew"
            ) from error
    else:
        last = checkpoint.newest(folder / "checkpoints")
        if last is None:
            raise UserError(f"{folder} has no weights yet; continue it with `vitrail train --resume {folder}`")
        saved = checkpoint.read(last)
        state, weights = _unfinished(last, saved, recipe, model), f"step {saved['step']} of {folder}, unfinished"
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]  # torch lists every key on a line of its own
        raise UserError(f"the weights in {folder} are not those of {recipe.model}: {reason}") from error
    return Run(model.eval(), recipe, classes, weights, folder)


def own_weights(state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Of the state of what a recipe trains: the model's part. Masked patch prediction trains more than the model."""
    within = _within(recipe)
    return {name.removeprefix(within): value for name, value in state.items() if name.startswith(within)}


def _within(recipe: Recipe) -> str:
    return "model." if recipe.task == "masked_patches" else ""


def _unfinished(last: Path, saved: Mapping[str, Any], recipe: Recipe, model: nn.Module) -> dict[str, Tensor]:
    """What would be scored and saved, from a checkpoint: the moving average where there is one."""
    part = "ema" if recipe.ema else "model"
    if part in saved:
        return own_weights({name: value for name, value in saved[part].items() if name != "count"}, recipe)
    tensors = {f"{part}.{_within(recipe)}{name}": value for name, value in model.state_dict().items()}
    checkpoint.read_tensors(last, tensors)  # into the model's own
    return dict(model.state_dict())


def _load_name(name: str, pretrained: bool) -> Run:
    recipe = Recipe(model=name, pretrained=pretrained, data=Data(source=""))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = create_model(name, pretrained=pretrained)
    config: Any = model.config
    mean, std = normalisation(recipe, config.in_chans)
    weights = official(name) if pretrained else None
    data = Data(
        source="",
        img_size=config.img_size,
        in_chans=config.in_chans,
        mean=mean,
        std=std,
        interpolation=weights.interpolation if weights else "bicubic",
        crop_pct=weights.crop_pct if weights else 0.875,
    )
    said = f"official weights {weights.repo or weights.torchvision}" if weights else "random weights, untrained"
    num_classes = int(model.num_classes)  # type: ignore[arg-type]
    return Run(model.eval(), Recipe(model=name, pretrained=pretrained, data=data), _names(num_classes), said, None)


def _names(num_classes: int) -> list[str]:
    """ImageNet's names where there are 1000 classes, else numbers."""
    return list(imagenet_classes()) if num_classes == 1000 else [f"class {number}" for number in range(num_classes)]
