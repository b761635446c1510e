"""Results are kept in results/, with the date in their name and within."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def keep(name: str, **facts: Any) -> Path:
    """Write facts, device and versions among them, to results/NAME-DATE.json."""
    today = datetime.now(UTC).date().isoformat()
    path = RESULTS / f"{name}-{today}.json"
    path.write_text(json.dumps({"date": today, **facts}, indent=1) + "\n", encoding="utf-8")
    return path
