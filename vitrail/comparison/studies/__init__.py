"""Published claims, each re-run in one file: arms that differ in one thing, contrasts between them, a verdict.

A claim's file says in its docstring what was claimed, by whom and with which figures, what is compared here and what
would count as seen; then `SCALES`, `CONTRASTS` and `arms(scale)`; where a model is asked more than the classes of the
test images, `VIEWS`; where there is more to see than differences, `draw`. `study` holds what these are made of,
`images` makes the data equal for all, `trial` trains, `asking` asks, `verdict` counts, `findings` writes, `pictures`
draws.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from vitrail.comparison.studies.study import Study
from vitrail.errors import UserError, did_you_mean


def find_study(name: str) -> Study:
    """The study of that name. Raises UserError for an unknown one, naming the nearest."""
    known = list_studies()
    if name not in known:
        raise UserError(f"no study '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    module = importlib.import_module(f"vitrail.comparison.studies.{name}")
    views, draw = getattr(module, "VIEWS", {}), getattr(module, "draw", None)
    return Study(name, module.__doc__ or "", module.SCALES, module.CONTRASTS, module.arms, views, draw)


def list_studies() -> dict[str, str]:
    """Name -> the first line of its docstring, for every file here that has contrasts."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        if "\nCONTRASTS = " in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return found
