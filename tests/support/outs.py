"""OUT folders, and what lies in one."""

from __future__ import annotations

from pathlib import Path

from spq_graph.documents import artifact


def earlier(out: Path) -> Path:
    """An OUT as an earlier run left it."""
    out.mkdir(parents=True)
    (out / artifact.PLAN).write_text("{}")
    (out / artifact.MODEL).write_text("old")
    return out


def listing(folder: Path) -> list[str]:
    """Every file and folder below, in order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
