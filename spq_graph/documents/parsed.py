"""JSON that others wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """What JSON holds; hooks are those of `json.loads`.

    Raises:
        ValueError: it is none, is in no Unicode encoding, holds half a surrogate pair, which no library takes for text,
            or is nested deeper than can be read.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        content = json.loads(text, **hooks)
        if _SURROGATE.search(text):
            for found in _texts(content):
                found.encode()
    except RecursionError as cause:
        raise ValueError("it is nested too deep") from cause
    except UnicodeEncodeError as cause:
        raise ValueError("it holds half a surrogate pair, which is no text") from cause
    return content


def _texts(content: Any) -> Iterator[str]:
    """Every text in what JSON holds, keys included."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
