"""From a name on the hub or a path to a dict of tensors. Nothing in a file is executed."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import UserError
from vitrail.weights.official import Official

log = logging.getLogger("vitrail")

IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")  # averaged weights first, as timm does


def fetch(source: Official) -> Path:
    """The file with these weights: downloaded once, then taken from the cache, also without a network.

    Raises UserError where it is neither cached nor reachable.
    """
    return fetch_hub(source) if source.repo else fetch_file(source)


def fetch_hub(source: Official) -> Path:
    """model.safetensors of a Hugging Face repository, or pytorch_model.bin where that is all it has, in the hub's own
    cache (HF_HOME, HF_HUB_OFFLINE are obeyed)."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    assert source.repo
    if source.beside and not isinstance(try_to_load_from_cache(source.repo, source.beside), str):
        try:
            hf_hub_download(source.repo, source.beside)
        except (HTTPError, EntryNotFoundError, OSError, RuntimeError) as error:
            raise UserError(unreachable(source, error)) from error
    for name in IN_FOLDER:
        cached = try_to_load_from_cache(source.repo, name)
        if isinstance(cached, str):  # released weights do not change; asking for news takes 24 s without a network
            return Path(cached)
    try:
        try:
            return Path(hf_hub_download(source.repo, IN_FOLDER[0]))
        except LocalEntryNotFoundError:  # no network: the other file is out of reach, too
            raise
        except EntryNotFoundError:
            return Path(hf_hub_download(source.repo, IN_FOLDER[1]))
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError) as error:  # network, cache, disk; xet's transport
        raise UserError(unreachable(source, error)) from error


def fetch_file(source: Official) -> Path:
    """A file of torchvision's or the authors' release, in torch.hub's cache (TORCH_HOME is obeyed); a hash in its name
    is checked on arrival."""
    from torchvision.models import get_weight

    url: str = source.url or get_weight(str(source.torchvision)).url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
        except (OSError, RuntimeError) as error:  # no network, no space; RuntimeError: the hash is wrong
            raise UserError(unreachable(source, error)) from error
    return path


def unreachable(source: Official, error: Exception) -> str:
    """The sentence for weights that are neither cached nor to be had."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return (
        f"the weights {source.source} are not in the cache and could not be downloaded ({reason.rstrip('.')}); run "
        "once with a network, or give the path of a file that you have"
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: .safetensors, .pth, .pt, .bin, .npz, or a folder that holds one.

    Training checkpoints are unwrapped ({"model": ...}, {"state_dict": ...}; averaged weights are preferred), and the
    prefixes of DataParallel and torch.compile removed. Raises UserError for what is missing, damaged or not weights.
    """
    path = in_folder(Path(path))
    if not path.is_file():
        raise UserError(f"no weights file '{path}'; give the path of a .safetensors, .pth or .npz file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"'{path}' is not a weights file by its name; {', '.join(READERS)} are read")
    if not path.stat().st_size:
        raise UserError(f"'{path}' is empty; download or copy it again")
    return without_prefixes(reader(path)) | colours_beside(path)


def colours_beside(path: Path) -> dict[str, Tensor]:
    """iGPT's colours, `clusters` (512, 3), which the hub keeps in the processor's configuration beside the weights."""
    file = path.with_name("preprocessor_config.json")
    try:
        colours = json.loads(file.read_text(encoding="utf-8")).get("clusters") if file.is_file() else None
    except ValueError as error:
        raise UserError(f"'{file}' is no JSON ({error}); download or copy it again") from error
    return {"clusters": torch.tensor(colours, dtype=torch.float32)} if colours else {}


def in_folder(path: Path) -> Path:
    """The weights inside a folder (a run, or a model saved by transformers or timm); a file is itself."""
    if not path.is_dir():
        return path
    found = [path / name for name in IN_FOLDER if (path / name).is_file()]
    if not found:
        raise UserError(f"the folder '{path}' holds neither {' nor '.join(IN_FOLDER)}; give the weights file itself")
    return found[0]


def damaged(path: Path, error: Exception) -> UserError:
    """The sentence for a file that cannot be read as what its name says."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # without torch's advice to drop the check
    reason = (text or type(error).__name__).splitlines()[0][:160].rstrip(".")
    return UserError(
        f"'{path}' cannot be read as {path.suffix} ({reason}); it may be damaged: download or copy it again"
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    def tensor(array: np.ndarray) -> Tensor:
        if array.dtype == np.dtype("V2"):  # JAX saves bfloat16 as two bytes without a type
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(np.ascontiguousarray(array))

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: tensor(arrays[name]) for name in arrays.files}
    except Exception as error:  # a pickled object; damaged bytes: BadZipFile, zlib.error, SyntaxError, ...
        raise damaged(path, error) from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """torch.save's file: tensors and plain containers only, and the `argparse.Namespace` that training scripts add."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch's unpickler raises anything: IndexError, struct.error, ...
        if "Unsupported global" in str(error):
            raise UserError(
                f"'{path}' holds Python objects, not only tensors, and was not loaded because they can run code; "
                "save its state_dict() alone, best as .safetensors"
            ) from error
        raise damaged(path, error) from error
    return tensors_of(content, path)


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".pth": read_pickle,
    ".pt": read_pickle,
    ".pyth": read_pickle,
    ".bin": read_pickle,
}


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    if isinstance(content, dict):
        inside = [key for key in WRAPPERS if isinstance(content.get(key), dict) and content[key]]
        if inside:
            if inside[0] in WRAPPERS[:2] and len(inside) > 1:
                log.warning("%s: the averaged weights '%s' are taken, not '%s'", path, inside[0], inside[1])
            return tensors_of(content[inside[0]], path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"'{path}' holds no weights but {type(content).__name__}; save a model's state_dict() in it")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f"'{path}' holds more than tensors ({', '.join(strange[:8])}); save a model's state_dict() alone"
        )
    return content


def without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel ("module.") and torch.compile ("_orig_mod.") put before every name."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
