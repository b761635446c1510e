"""What can be wrong with what lies beside a graph: JSON, TOML, arrays, texts."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from tests.fuzz.mutations import damage
from tests.fuzz.places import HUGE, NAMES, Rng

_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", [], {}, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**64, 10**400),
    *("\ud800", "\x1b[31m", [[]], [1, 2], ["a", None], {"content": 3}, {"a": {"b": []}}, "../../x"),
    *(HUGE[-1], HUGE[-3], HUGE[0]),
    *NAMES[:4],
)
_DEEP = ("[" * 200_000, '{"a":' * 100_000, "[" * 900 + "]" * 900)
_DIGITS = "9" * 5000


def _places(content: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container and key in what JSON holds."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        found.append((content, key))
        _places(value, found)
    return found


def spoil_json(rng: Rng, content: bytes) -> bytes:
    """JSON with other values, other keys, or that is none."""
    way = rng.random()
    if way < 0.15:
        return damage(rng, content)
    if way < 0.22:
        return rng.choice(_DEEP).encode()
    parsed = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = _places(parsed, [])
        if not places:
            break
        holder, key = rng.choice(places)
        change = rng.random()
        if change < 0.25:
            del holder[key]
        elif change < 0.35 and isinstance(holder, dict):
            holder[rng.choice(("new", *NAMES[1:4], "site"))] = deepcopy(holder[key])
        elif change < 0.45 and isinstance(holder, list):
            holder.append(deepcopy(holder[key]))
        else:
            holder[key] = deepcopy(rng.choice(_VALUES))
    if way < 0.27:
        parsed = rng.choice(([parsed], "text", 3, None))
    text = json.dumps(parsed, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.9)
    if way > 0.97:
        text = text.replace(": 1", f": {_DIGITS}", 1)
    elif way > 0.93:
        text = text.replace("{", '{"schema": 3, "schema": "x",', 1)
    elif way > 0.9:
        text = "\ufeff" + text
    return text.encode("utf-8", "surrogatepass")


def spoil_toml(rng: Rng, content: bytes) -> bytes:
    """A recipe with other keys and values."""
    keys = ("bits", "keep", "seed", "target", "spike_ratio", "overrides", "kl_budget", "high_precision", "nobody")
    values = (
        *("[" * 900 + "]" * 900, _DIGITS, "nan", "-inf", "1979-05-27T07:32:00Z", "'x'", "[[1]]", "{a = {b = 1}}"),
        *("-1", "true", "['*', '[', '\\u001b[31m']", "[{pattern = '*', precision = 'int8'}]", "9223372036854775807"),
        *(f"'{'x' * 70_000}'", "[1.5]", "1e400", "'[!]'", "'fp8'", "5", "2.5"),
    )
    if rng.random() < 0.2:
        return damage(rng, content)
    lines = [f"{key} = {rng.choice(values)}" for key in rng.sample(keys, rng.randint(1, 3))]
    return "\n".join(lines).encode()


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(117)[:117] + b"\n"


def spoil_npz(rng: Rng, content: bytes) -> bytes:
    """An archive of arrays whose headers, sizes or bytes are not what they should be."""
    way = rng.randrange(5)
    if way == 0:
        return damage(rng, content, 3)
    into = io.BytesIO()
    if way == 1:
        shapes = ("(1099511627776, 16)", "(-1, 2)", "(" * 40, "(4, 4)", "()", "(0, 0)", "(2, 2, 2)")
        kinds = ("<i8", "|O", "<f4", "|S4", "<U9999", "nonsense", "<M8[s]", "|V8")
        head = f"{{'descr': '{rng.choice(kinds)}', 'fortran_order': False, 'shape': {rng.choice(shapes)}, }}"
        with zipfile.ZipFile(into, "w") as archive:
            archive.writestr(rng.choice(("input_ids.npy", "x.npy", "input_ids")), _npy(head.encode()) + b"\0" * 64)
    elif way == 2:
        ids: Any = rng.choice((np.full((3, 40), HUGE[-1]), np.full((2, 2), -5), np.zeros((0, 8), int), np.arange(80)))
        np.savez(into, input_ids=ids, attention_mask=rng.choice((np.ones_like(ids), np.zeros(3), np.full((2, 2), 7))))
    elif way == 3:
        data = bytearray(content)
        at, central, value = rng.choice(((6, 8, 1), (8, 10, 99), (14, 16, 7), (22, 24, 255)))
        data[at] = data[data.find(b"PK\x01\x02") + central] = value
        return bytes(data)
    else:
        np.savez_compressed(into, input_ids=np.zeros((1 << 10, 1 << 14), np.int64), other=np.zeros(1 << 20))
    return into.getvalue()


def spoil_safetensors(rng: Rng, content: bytes) -> bytes:
    """The header's length, its JSON, or the bytes behind it."""
    length = int.from_bytes(content[:8], "little")
    way = rng.randrange(5)
    if way == 0:
        return rng.choice(HUGE[3:]).to_bytes(8, "little", signed=True) + content[8:]
    if way == 1:
        head = rng.choice(_DEEP).encode()
    elif way == 2:
        head = spoil_json(rng, content[8 : 8 + length])
    else:
        return damage(rng, content) if way == 3 else content[: rng.randrange(len(content))]
    return len(head).to_bytes(8, "little") + head + content[8 + length :]


def spoil_text(rng: Rng, content: bytes) -> bytes:
    """Text, JSON lines or gzip that are not quite so."""
    ways: list[Callable[[], bytes]] = [
        lambda: damage(rng, content),
        lambda: b"",
        lambda: rng.randbytes(300),
        lambda: gzip.compress(content)[: rng.randrange(10, 60)],
        lambda: gzip.compress(damage(rng, content)),
        lambda: rng.choice(_DEEP).encode(),
        f'{{"text": {_DIGITS}}}'.encode,
        lambda: b'{"messages": [{"role": "user"}]}\n{"prompt": 3}',
        lambda: json.dumps([rng.choice(_VALUES) for _ in range(4)]).encode(),
        lambda: content.decode().encode("utf-16")[: rng.randrange(40, 99)],
        lambda: b"w1 " * 200_000,
        lambda: b"\0" * 5000,
    ]
    return rng.choice(ways)()


SPOILED: dict[str, Callable[[Rng, bytes], bytes]] = {
    ".json": spoil_json,
    ".toml": spoil_toml,
    ".npz": spoil_npz,
    ".safetensors": spoil_safetensors,
    ".txt": spoil_text,
    ".onnx": damage,
}
"""What becomes of a file, by the end of its name."""
