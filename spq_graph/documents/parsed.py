"""JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """What JSON holds; hooks are those of `json.loads`.

    Raises:
        ValueError: it is none, is in no Unicode encoding, or is nested deeper than can be read.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError as cause:
        raise ValueError("it is nested too deep") from cause
