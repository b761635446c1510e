"""Arrays beside a document: the same numbers give the same bytes, and what is no such file is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from spq_graph.documents.arrays import Arrays
from spq_graph.documents.changes import Prefix

CACHES = {"b": np.ones((1, 2, 3, 4), np.float32), "a": np.zeros((1, 2, 3, 4), np.float32)}


def test_the_order_of_names_does_not_matter() -> None:
    one, other = Arrays.of(CACHES), Arrays.of(dict(reversed(CACHES.items())))
    assert one == other
    assert one.digest == other.digest
    found = one.read()
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in CACHES.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no such file", "no safetensors file"),
        (Arrays.of(CACHES).content[:-4], "no safetensors file"),
        (save({"a": np.zeros(3)}), "a holds float64, not float32"),
        (save({"a": np.array([1, np.nan], np.float32)}), "a holds numbers that are not finite"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Arrays(content).read()


def test_a_prefix_knows_its_keys_and_values() -> None:
    prefix = Prefix.of((7, 1, 3), CACHES)
    bare = Prefix.model_validate_json(prefix.model_dump_json())
    assert bare.holding(prefix.arrays) == prefix
    with pytest.raises(LookupError):
        _ = bare.arrays
    with pytest.raises(ValueError, match="not the file that was written with the plan"):
        bare.holding(Arrays.of({"a": CACHES["a"]}))
    with pytest.raises(ValueError, match=r"not \[1, heads, 2, width\]"):
        Prefix.of((7, 1), CACHES)
