"""How decoders name their caches: what comes in as past goes out as present."""

from __future__ import annotations

import re
from collections.abc import Iterable

# past_key_values.0.key and present.0.key are one cache before and after, and so are past_0 and present_0.
_STEM = re.compile(r"^(past|present)(_key_values)?[._]?")


def is_past(name: str) -> bool:
    """Whether an input holds keys and values of earlier tokens."""
    return "past" in name or "cache" in name


def continued(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """By input of a cache, the output that continues it; an input without one is left out.

    Args:
        inputs: names of those that hold keys and values.
        outputs: names of all that a graph gives.
    """
    after = {_STEM.sub("", name): name for name in outputs if name.startswith("present")}
    return {name: after[stem] for name in inputs if (stem := _STEM.sub("", name)) in after}
