"""The image files that a command line names: files, folders and globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from vitrail.data.folders import EXTENSIONS
from vitrail.errors import UserError, did_you_mean


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """Files as they are named, folders and globs as the images in them, sorted.

    Raises UserError where a name leads to nothing, offering the nearest name beside it.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise UserError(f"the folder {path} holds no image ({', '.join(sorted(EXTENSIONS))})")
            found += inside
        elif path.exists():
            found.append(path)
        elif matches := sorted(glob.glob(str(name), recursive=True)):
            found += [Path(match) for match in matches if Path(match).is_file()]
        else:
            beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"no file, folder or pattern '{name}'{did_you_mean(path.name, beside)}")
    return list(dict.fromkeys(found))
