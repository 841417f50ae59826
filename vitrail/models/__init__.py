"""Every architecture behind three functions: `create_model`, `list_models`, `describe`.

A name leads to the file whose VARIANTS hold it. Nothing is registered and nothing is imported until asked; listing
reads the files' text, so it needs no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitrail.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent


def create_model(
    name: str,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
    **changes: Any,
) -> nn.Module:
    """Build the model `name`: images (B, in_chans, img_size, img_size), normalised, -> logits (B, num_classes).

    `name` is one of `list_models()`, or `./my_file.py:name` for a file of your own in the form of those in this
    folder. `pretrained=True` fetches the official weights from the Hugging Face hub; a path takes .safetensors, .pth
    or .npz. `changes` are fields of the family's Config (`drop_path_rate=0.1`).
    Raises UserError for an unknown name or field, naming the nearest, and for weights of another model.
    """
    config, module, variant = _config(name)
    for key, value in {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size, **changes}.items():
        if key not in {field.name for field in dataclasses.fields(config)}:
            fields = [field.name for field in dataclasses.fields(config)]
            raise UserError(
                f"'{key}' is not a setting of {name}, which has {', '.join(fields)}{did_you_mean(key, fields)}"
            )
        if value is not None:
            config = dataclasses.replace(config, **{key: value})
    build = functools.partial(module.Model, config)
    if pretrained:
        from vitrail.weights import build_with_weights

        return build_with_weights(build, variant, pretrained)
    model: nn.Module = build()
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Names that match `pattern` (shell wildcards; without one, names that contain it), file by file."""
    if not any(char in pattern for char in "*?["):
        pattern = f"*{pattern}*"
    return [name for file in _families() for name in _variants(file) if fnmatch(name, pattern)]


def describe(name: str) -> dict[str, Any]:
    """What `vitrail show` prints: title, idea, file, settings, the printed figures and where the weights live."""
    from vitrail.weights import official

    config, module, variant = _config(name)
    figures = printed_figures(module.__doc__ or "").get(variant, {})
    weights = official(variant)
    return {
        "name": variant,
        "paper": title(module.__doc__ or ""),
        "about": module.__doc__,
        "file": module.__file__,
        "config": dataclasses.asdict(config),
        "printed": figures,
        "weights": dataclasses.asdict(weights) if weights else None,
    }


def summaries(pattern: str = "*") -> list[dict[str, str]]:
    """name, family (its file), paper, and params, FLOPs, top-1 as printed, for every name that matches."""
    wanted = set(list_models(pattern))
    rows = []
    for file in _families():
        text = _docstring(file)
        figures = printed_figures(text)
        for name in _variants(file):
            if name in wanted:
                rows.append({"name": name, "family": file.stem, "paper": title(text), **figures.get(name, {})})
    return rows


def title(docstring: str) -> str:
    """The paper's title: a model file's docstring up to the first full stop, on one line."""
    return " ".join(re.split(r"[.?](?:\s|$)", docstring, maxsplit=1)[0].split())


def printed_figures(docstring: str) -> dict[str, dict[str, str]]:
    """The table of a model file's docstring: name -> {"params": "86.6M", "FLOPs": "17.6G", "top-1": "84.53"}.

    Its head is the line that begins with `variant`, one column a word up to the first wide gap before a remark; a
    cell `-` is left out.
    """
    lines = docstring.splitlines()
    head = next((n for n, line in enumerate(lines) if line.split()[:1] == ["variant"]), None)
    if head is None:
        return {}
    table = {}
    for line in lines[head + 1 :]:
        cells = line.split()
        if len(cells) < 4:
            break
        table[cells[0]] = {
            key: cell for key, cell in zip(("params", "FLOPs", "top-1"), cells[1:4], strict=True) if cell != "-"
        }
    return table


def _config(name: str) -> tuple[Any, ModuleType, str]:
    """The Config of a variant, the module it comes from and its bare name."""
    path, _, variant = name.rpartition(":")
    module = _load_file(Path(path)) if path else importlib.import_module(f"vitrail.models.{_family(name)}")
    if variant not in module.VARIANTS:
        known = list(module.VARIANTS) if path else list_models()
        where = path or "`vitrail models`"
        raise UserError(f"no model '{variant}' in {where}{did_you_mean(variant, known) or ', which lists all names'}")
    return module.VARIANTS[variant], module, variant


def _family(name: str) -> str:
    """The stem of the file whose VARIANTS hold `name`; files whose stem begins the name are opened first."""
    stems = sorted(_families(), key=lambda file: (not name.startswith(file.stem), -len(file.stem)))
    found = next((file.stem for file in stems if name in _variants(file)), None)
    if found is None:
        raise UserError(f"no model '{name}'{did_you_mean(name, list_models()) or '; `vitrail models` lists all names'}")
    return found


def _load_file(path: Path) -> ModuleType:
    """Import a model file that lies outside the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"no model file '{path}'; give ./file.py:name, for example after `vitrail copy vit my_vit.py`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up the names in a class's annotations
    spec.loader.exec_module(module)
    if not hasattr(module, "VARIANTS") or not hasattr(module, "Model"):
        raise UserError(f"{path} is not a model file: it lacks VARIANTS or Model; `vitrail copy vit` shows the form")
    return module


@functools.cache
def _families() -> list[Path]:
    return [file for file in sorted(FOLDER.glob("[a-z]*.py")) if "\nVARIANTS = " in file.read_text(encoding="utf-8")]


@functools.cache
def _syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _docstring(file: Path) -> str:
    return ast.get_docstring(_syntax(file)) or ""


@functools.cache
def _variants(file: Path) -> list[str]:
    """The keys of the file's VARIANTS, read from its text."""
    for node in _syntax(file).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["VARIANTS"]:
                return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    return []
