"""Results are kept in results/, with the date in their name and within."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def keep(name: str, *, date: str | None = None, **facts: Any) -> Path:
    """Write facts, device and versions among them, to results/NAME-DATE.json; they are of today by default."""
    date = date or datetime.now(UTC).date().isoformat()
    path = RESULTS / f"{name}-{date}.json"
    path.write_text(json.dumps({"date": date, **facts}, indent=1) + "\n", encoding="utf-8")
    return path
