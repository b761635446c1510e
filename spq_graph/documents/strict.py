"""What every part of a document is: a key that it does not know is refused; and JSON from anywhere."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A part of a document, without keys beside its own."""

    model_config = ConfigDict(extra="forbid")


def parse_json(text: str | bytes) -> Any:
    """What JSON holds.

    Raises:
        ValueError: it is none, is in no Unicode encoding, or is nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError as cause:
        raise ValueError("it is nested too deep") from cause
