"""Write the README's file tree and table from the sources, or with --check say whether they are stale."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

from vitrail.models import FOLDER, summaries

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PACKAGES = ["layers", "weights", "models", "data", "engines", "training", "interpretability", "recipes", "comparison"]


def tree() -> str:
    """One line a file of the top level and a line a package with its files; those of models stand in the table."""
    lines = ["vitrail/"]
    for path in sorted((ROOT / "vitrail").glob("[a-z]*.py")):
        lines.append(f"  {path.name:<20}{first_sentence(path)}")
    for package in PACKAGES:
        folder = ROOT / "vitrail" / package
        files = sorted(path.stem for path in folder.glob("[a-z]*.py"))
        files += sorted(f"{path.parent.name}/" for path in folder.glob("*/__init__.py"))
        lines.append(f"  {package + '/':<20}{first_sentence(folder / '__init__.py')}")
        if package == "models":
            continue
        line = " " * 22
        for file in files:
            if len(line) + len(file) > 150:
                lines.append(line.rstrip())
                line = " " * 22
            line += file + " "
        lines.append(line.rstrip())
    return "```\n" + "\n".join(lines) + "\n```"


def first_sentence(path: Path) -> str:
    """Of a file's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return text.split(". ")[0].rstrip(".")


def table() -> str:
    """One row a topic of the lectures: its files, in the order of their names."""
    files = defaultdict(list)
    for stem in dict.fromkeys(row["family"] for row in summaries()):
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))) or ""
        topic = re.search(r"^Lecture +(.+)$", docstring, re.MULTILINE)
        files[topic[1] if topic else "others"].append(f"`{stem}`")
    lines = ["| topic | files |", "|---|---|"]
    lines += [f"| {topic} | {' '.join(found)} |" for topic, found in sorted(files.items())]
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with the parts between the markers made anew."""
    for name, content in (("tree", tree()), ("table", table())):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    current = README.read_text(encoding="utf-8")
    if "--check" in sys.argv and filled(current) != current:
        sys.exit("README.md is stale: run `make table`")
    README.write_text(filled(current), encoding="utf-8")
