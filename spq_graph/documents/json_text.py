"""The one way in which a document becomes JSON, which has no word for NaN and infinity: neither is ever written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from spq_graph.terms.errors import CheckError


def json_text(
    data: Any,
    document: str,
    *,
    indent: int | None = 1,
    ascii_only: bool = False,
    sort_keys: bool = False,
    remedy: str = "please report this",
) -> str:
    """A document as JSON.

    Args:
        data: plain data, no part of which holds itself; what is absent is None there.
        document: its name, for the error.
        indent: as `json.dumps` takes it.
        ascii_only: whether other characters are escaped.
        sort_keys: whether keys are sorted.
        remedy: what can be done about a number that is not finite.

    Raises:
        CheckError: a number is NaN or infinite, named by its key.
        ValueError: an integer has more digits than Python writes.
    """
    try:
        return json.dumps(data, indent=indent, ensure_ascii=ascii_only, sort_keys=sort_keys, allow_nan=False)
    except ValueError as cause:
        found = next(_not_finite(data), None)
        if found is None:
            raise
        key, value = found
        raise CheckError(
            f"'{key}' is {value}, which is no number that JSON has", where=document, remedy=remedy
        ) from cause


def _not_finite(data: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The numbers that are not finite, by key."""
    if isinstance(data, float) and not math.isfinite(data):
        yield key, data
    parts = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list | tuple) else ()
    for name, part in parts:
        yield from _not_finite(part, f"{key}.{name}" if key else str(name))
