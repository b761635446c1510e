"""What every part of a document is: a key that it does not know is refused, and so is JSON that says no one thing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from spq_graph.documents.parsed import parse_json

Bounds = Mapping[str, tuple[float, float]]
"""Smallest and largest number by key, wherever in a document the key stands."""
COUNT: tuple[float, float] = (0, 2**62)
AMOUNT: tuple[float, float] = (0, math.inf)
FLOAT32: tuple[float, float] = (-(2.0 - 2.0**-23) * 2.0**127, (2.0 - 2.0**-23) * 2.0**127)


class Strict(BaseModel):
    """A part of a document, without keys beside its own."""

    # NaN stays what it is until `json_text` refuses it: null would be read as something that was not measured.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


def read_json(text: bytes, bounds: Bounds | None = None) -> Any:
    """What JSON says, if it says one thing.

    Args:
        text: of the file.
        bounds: that numbers are held against, by their key.

    Raises:
        ValueError: it is no JSON; a key stands twice in one object; a number is NaN, infinite or out of its bounds. The
            message begins with the place.
    """
    try:
        found = parse_json(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise ValueError(f"no JSON: {cause}") from cause
    _hold(found, bounds or {}, "")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice[:80]}' stands twice in one object")
    return found


def _hold(value: Any, bounds: Bounds, place: str, within: tuple[float, float] | None = None) -> None:
    """Numbers in a list or an object are held against the bounds of its key, where they have none of their own."""
    if isinstance(value, dict):
        for name, part in value.items():
            _hold(part, bounds, f"{place}.{name}" if place else name, bounds.get(name, within))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _hold(part, bounds, f"{place}.{index}" if place else str(index), within)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}: {value} is no number that JSON has")
        if within is not None and not within[0] <= value <= within[1]:
            said = f"at least {within[0]}" if within[1] == math.inf else f"from {within[0]} to {within[1]}"
            raise ValueError(f"{place}: {value} is not {said}")


def first_problem(cause: Exception) -> str:
    """Where a document is wrong first, and how, in words."""
    what = str(cause)
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        what = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return what[:400]
