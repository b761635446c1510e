"""Ranges as they lie on the disk, read with suspicion: what would make no sense in a plan is refused here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from spq_graph.documents.content import content_of, refuse_special
from spq_graph.documents.strict import AMOUNT, COUNT, FLOAT32, read_json
from spq_graph.documents.token_profile import LEADERS, TokenProfile
from spq_graph.documents.value_range import ValueRange

SCHEMA = "spq-graph/ranges/1"
Arrays = dict[str, npt.NDArray[Any]]
_BOUNDS = {
    "tokens": COUNT,
    "sequences": COUNT,
    "token": (-1, 2**63 - 1),
    "position": (-1, 2**63 - 1),
    "min": FLOAT32,
    "max": FLOAT32,
    "token_max": (0, FLOAT32[1]),
    "median": AMOUNT,
    "ratio": AMOUNT,
    "sequence_ratio": AMOUNT,
    "ratio_sum": AMOUNT,
}
_LARGEST_JSON = 1 << 28  # bytes: a thousand for each of a quarter of a million values
_BINS = np.float32(np.inf).view(np.uint32) >> 17  # bins of the histogram, of float32 that are finite
_MOST = {"bins": int(_BINS), "counts": int(_BINS), "profile": 256, "profile_max": 256, "leaders": LEADERS}
_TYPES = {"bins": "I32", "counts": "I64", "profile": "I64", "profile_max": "F32"}
_TYPES |= {"leaders": "I64", "leaders_max": "F32"}
_BY_CHANNEL = ("channels", "channel_low", "channel_high")
_MOST |= {"leaders_max": LEADERS, **dict.fromkeys(_BY_CHANNEL, 1 << 24)}
_TYPES |= dict.fromkeys(_BY_CHANNEL, "F32")
ALWAYS = ("bins", "counts")
CHANNELS = ("channel_low", "channel_high")
EARLIER_CHANNELS = ("channels",)  # the largest absolute value, which is all that the first edition wrote
PROFILE = ("profile", "profile_max", "leaders", "leaders_max")


def digest_of_arrays(content: bytes) -> str:
    """What ranges.json says of the file beside it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def read_head(path: Path) -> dict[str, Any]:
    """The facts in single numbers, as ranges.json has them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of ours, or says what cannot be; the message begins with the place.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size:,} bytes are more than ranges take")
    head = read_json(content_of(path), _BOUNDS)
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        found = head.get("schema") if isinstance(head, dict) else type(head).__name__
        raise ValueError(f"schema: expected {SCHEMA}, found {found}")
    if not isinstance(head.get("model"), str):
        raise ValueError("model: the digest of the model is missing")
    for name in ("tokens", "sequences"):
        _whole(head, name, name)
    if not isinstance(head.get("values"), dict):
        raise ValueError("values: not an object")
    for name, facts in head["values"].items():
        place = f"values.{name}"
        if not isinstance(facts, dict):
            raise ValueError(f"{place}: not an object")
        for key in ("token", "position", "sequences", "tokens", "ratio_sum"):
            _whole(facts, key, f"{place}.{key}")
        for key in ("min", "max", "token_max"):
            if isinstance(facts.get(key), bool) or not isinstance(facts.get(key), int | float):
                raise ValueError(f"{place}.{key}: {facts.get(key)!r:.80} is no number")
    return head


def _whole(facts: dict[str, Any], key: str, place: str) -> None:
    if type(facts.get(key)) is not int:
        raise ValueError(f"{place}: {facts.get(key)!r:.80} is no whole number")


def read_arrays(path: Path, head: dict[str, Any]) -> Arrays:
    """The arrays that belong to a head; none is read before its type and size are known to be such as ranges have.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        SourceError: it is a pipe or a device.
        ValueError: it is not the one that was written with the head, or holds what cannot be.
    """
    refuse_special(path)
    said = head.get("arrays")
    if said is not None:
        with path.open("rb") as stream:
            found = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        if found != said:
            raise ValueError(f"{path.name}: it is not the file that was written with this one, or was damaged since")
    arrays: Arrays = {}
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        for value in head["values"]:
            profile = f"{value}/{PROFILE[0]}" in names
            earlier = f"{value}/{EARLIER_CHANNELS[0]}" in names
            channels = EARLIER_CHANNELS if earlier else CHANNELS
            for part in (*ALWAYS, *channels, *(PROFILE if profile else ())):
                name = f"{value}/{part}"
                if name not in names:
                    raise ValueError(f"{path.name}: {name} is missing")
                sliced = file.get_slice(name)
                shape, kind = sliced.get_shape(), sliced.get_dtype()
                if kind != _TYPES[part] or not shape or shape[0] > _MOST[part] or shape[1:] != _columns(part):
                    raise ValueError(f"{path.name}: {name} is {kind} {shape}, not as ranges have it")
                arrays[name] = file.get_tensor(name)
    return arrays


def by_channel(arrays: Arrays, value: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest element by channel, float32 [K] each; bounds of them, where an earlier version wrote less.

    Raises:
        ValueError: an earlier version's largest absolute values are negative.
    """
    largest = arrays.get(f"{value}/{EARLIER_CHANNELS[0]}")
    if largest is None:
        low, high = (arrays[f"{value}/{part}"] for part in CHANNELS)
        return low, high
    if (largest < 0).any():
        raise ValueError(f"values.{value}.channels: a channel's largest absolute value is negative or not finite")
    return -largest, largest


def _columns(part: str) -> list[int]:
    return {"profile": [4], "leaders": [2]}.get(part, [])


def refuse_senseless(name: str, seen: ValueRange, sequences: int) -> None:
    """Hold what is said of one value against itself.

    Args:
        name: of the value.
        seen: what is said.
        sequences: how many were run in all.

    Raises:
        ValueError: naming the key, and its value.
    """
    for key, what in _senseless(seen, sequences):
        raise ValueError(f"values.{name}.{key}: {what}")


def _senseless(seen: ValueRange, sequences: int) -> Iterator[tuple[str, str]]:
    largest = max(abs(seen.low), abs(seen.high))
    bins, counts = np.array(list(seen.histogram), np.int64), np.array(list(seen.histogram.values()), np.int64)
    if seen.low > seen.high:
        yield "min", f"{seen.low:g} is above max, {seen.high:g}"
    if abs(seen.peak.value - largest) > 1e-6 * largest:
        yield "token_max", f"{seen.peak.value:g} is not the larger end of {seen.low:g} to {seen.high:g}"
    if seen.sequences > sequences:
        yield "sequences", f"{seen.sequences} are more than the {sequences} that were run"
    if (counts < 1).any() or counts.sum(dtype=object) != seen.tokens or not seen.tokens:
        yield "counts", f"they are not those of {seen.tokens} tokens"
    if (bins < 0).any() or (bins >= int(_BINS)).any() or (np.diff(bins) <= 0).any():
        yield "bins", f"they are not numbers from 0 to {int(_BINS) - 1} in their order"
    low, high = seen.channel_low, seen.channel_high
    if not low.size or low.shape != high.shape or not (np.isfinite(low) & np.isfinite(high)).all():
        yield "channels", "a channel's smallest or largest element is missing or not finite"
    elif (low > high).any():
        yield "channel_low", "a channel's smallest element is above its largest"
    if seen.profile is not None:
        yield from _senseless_profile(seen.profile, seen.tokens)


def _senseless_profile(profile: TokenProfile, tokens: int) -> Iterator[tuple[str, str]]:
    counts = profile.places[:, 2]
    if len(profile.largest) != len(counts) or (counts < 0).any() or counts.sum(dtype=object) != tokens:
        yield "profile", f"its buckets do not hold {tokens} tokens"
    if (profile.places[:, 3] < 0).any() or (profile.places[:, :2] < 0).any():
        yield "profile", "a position, a token or a sum is negative"
    if not np.isfinite(profile.largest).all() or (profile.largest[counts > 0] < 0).any():
        yield "profile_max", "a token maximum is negative or not finite"
    if not all(np.isfinite(peak.value) and min(peak.value, peak.token, peak.position) >= 0 for peak in profile.leaders):
        yield "leaders", "a token that leads has no maximum, place or number that can be"
