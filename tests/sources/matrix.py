"""The matrix of sources and families: `python -m tests.sources.matrix` writes it here and to the docs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.families.catalogue import FAMILIES
from tests.sources.catalogue import NAMES, SOURCES, Source

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "supported.md"
RECORD = Path(__file__).with_name("matrix.json")
BEGIN, END = "<!-- sources: written by python -m tests.sources.matrix -->", "<!-- end of sources -->"
Record = Mapping[str, Mapping[str, str]]


def recorded() -> dict[str, dict[str, str]]:
    """The cells as they were when the matrix was last written, by source and family."""
    loaded: dict[str, dict[str, str]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return loaded


def cell(source: Source, family: str, kernels: int | None, sites: int) -> str:
    """What the matrix says of one graph."""
    outcome = source.outcomes.get(family, "runs")
    if outcome == "absent":
        return "–"
    if outcome in ("refused", "broken"):
        return outcome
    return f"{sites} found" if outcome == "found" else f"{kernels}/{sites}"


def table(cells: Record) -> str:
    """The matrix as a table of Markdown, with its notes below."""
    titles = [FAMILIES[name].title.replace("Llama 2 and 3", "Llama") for name in NAMES]
    lines = [f"| source | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for source in SOURCES:
        row = [cells[source.name].get(name, "") for name in NAMES]
        lines.append(f"| {source.title} | {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |"))
    notes = dict.fromkeys(
        f"- {source.title}, {_names(source, why)}: {why}." for source in SOURCES for why in source.notes.values()
    )
    return "\n".join([*lines, "", *notes])


def _names(source: Source, why: str) -> str:
    some = [name for name, note in source.notes.items() if note == why]
    asked = [name for name in source.families if source.outcomes.get(name) != "absent"]
    return "every family" if some == asked else ", ".join(FAMILIES[name].title for name in some)


def with_table(text: str, cells: Record) -> str:
    """The page with its matrix renewed."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(cells)}\n{END}{after}"


def main() -> None:
    """Produce, examine, and write both files."""
    from tests.sources.examine import examine, produce_all

    cells: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="sources-") as folder:
        work = Path(folder)
        produced = produce_all(work, ROOT / ".pytest_cache" / "d" / "environments")
        for source in SOURCES:
            cells[source.name] = {}
            for family in source.families:
                (work / "now" / source.name / family).mkdir(parents=True)
                found = examine(produced, source.name, family, work / "now" / source.name / family)
                cells[source.name][family] = cell(source, family, found.kernels, found.counted)
                print(source.name, family, cells[source.name][family], found.error, file=sys.stderr, flush=True)
    RECORD.write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), cells), encoding="utf-8")


if __name__ == "__main__":
    main()
