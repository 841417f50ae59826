"""Write the table of docs/studies/README.md from the findings beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vitrail.comparison.studies.findings import signed

FOLDER = Path(__file__).parent / "studies"
README = FOLDER / "README.md"


def row(found: dict[str, Any]) -> str:
    """Name, verdict, and the differences that decide."""
    deciding = [one for one in found["contrasts"] if one["decides"]]
    differences = "; ".join(
        f"{one['says']}: {signed(one['interval']['mean'])} ({signed(one['low'])} to {signed(one['high'])})"
        + ("" if one.get("unit", "points") == "points" else f" {one['unit']}")
        for one in deciding
    )
    return f"| [{found['study']}]({found['study']}.md) | {found['verdict']} | {differences} |"


def main() -> None:
    """Fill in what stands between the markers."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    about = "deciding differences, points of accuracy unless said (95 % interval)"
    head = [f"| study | verdict | {about} |", "|---|---|---|"]
    table = "\n".join([*head, *map(row, found)])
    text = README.read_text(encoding="utf-8")
    README.write_text(
        re.sub(r"<!-- table -->\n.*?<!-- /table -->", f"<!-- table -->\n{table}\n<!-- /table -->", text, flags=re.S),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
