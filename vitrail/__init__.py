"""vitrail: vision transformers for visual recognition. Train on your own images, use, and see what the model looks at.

The public names are resolved when first used, so that `import vitrail` is light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "create_model": "models",
    "list_models": "models",
    "describe": "models",
    "read_image": "data.read",
    "record": "layers.attention",
    "load": "run",
    "Recipe": "recipe",
    "train": "verbs",
    "evaluate": "training.evaluate",
    "optimize": "engines",
    "predict": "training.predict",
    "explain": "interpretability.explain",
    "inspect": "comparison.inspection",
    "compare": "comparison.compare",
    "robustness": "comparison.robustness",
    "export": "formats",
    "doctor": "data.doctor",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitrail' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"vitrail.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
