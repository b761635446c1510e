"""JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What JSON holds.

    Raises:
        ValueError: it is none, is in no Unicode encoding, or is nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError as cause:
        raise ValueError("it is nested too deep") from cause
