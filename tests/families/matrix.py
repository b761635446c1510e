"""The support matrix: `python -m tests.families.matrix` examines every family, and writes it here and to the docs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.families.catalogue import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "supported.md"
RECORD = Path(__file__).with_name("matrix.json")
BEGIN, END = "<!-- families: written by python -m tests.families.matrix -->", "<!-- end of families -->"


def recorded() -> dict[str, dict[str, Any]]:
    """What was found when the matrix was last written, by family."""
    loaded: dict[str, dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return loaded


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The matrix as a table of Markdown."""
    lines = ["| family | exports | GLU blocks | sites | integer kernels | |", "|---|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        row = rows[name]
        kernels = "–" if row["integer_kernels"] is None else row["integer_kernels"]
        exports = "yes" if row["exports"] else "no"
        cells = (family.title, exports, row["glu_blocks"], row["sites"], kernels, family.note)
        lines.append(f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |"))
    return "\n".join(lines)


def with_table(text: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its matrix renewed."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main() -> None:
    """Examine, and write both files."""
    from tests.families.examine import examine

    rows = {}
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory(prefix="families-") as work:
            rows[name] = examine(family, Path(work)).to_dict()
        print(name, rows[name], file=sys.stderr, flush=True)
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
