"""Write the tables of docs/performance.md from benchmarks/results: what stands between `<!-- NAME -->` and its end.

python docs/make_performance.py            # after `make bench`
python docs/make_performance.py --check    # fails where the page is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "performance.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a column for every key that some row has, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(name: str) -> str:
    """The table of one result, and what it was measured with."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    machine = found["machine"]
    about = f"{machine['cpu']}, {machine['device']}, torch {machine['torch']}"
    lines = [table(found["rows"]), "", f"*{about}{'; ' + found['note'] if found.get('note') else ''}*"]
    return "\n".join(lines)


def filled(text: str) -> str:
    """The page with every table that was measured in its place. A result without a place is an error."""
    places = re.findall(r"<!-- (\w+) -->", text)
    results = sorted(path.stem for path in RESULTS.glob("*.json"))
    if missing := set(results) - set(places):
        raise SystemExit(f"{PAGE.name} has no place for {', '.join(sorted(missing))}")
    for name in results:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = re.sub(f"{begin}.*?{end}", lambda _, n=name, b=begin, e=end: f"{b}\n{section(n)}\n{e}", text, flags=re.S)
    return text


def main() -> None:
    """Fill in the page, or with --check say where it is behind."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        PAGE.write_text(filled(text), encoding="utf-8")
    elif filled(text) != text:
        raise SystemExit("docs/performance.md is not what benchmarks/results say: run python docs/make_performance.py")


if __name__ == "__main__":
    main()
