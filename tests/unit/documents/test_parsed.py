"""What text of JSON holds that is no text."""

from __future__ import annotations

import json

import pytest

from spq_graph.documents.parsed import parse_json


@pytest.mark.parametrize("encoding", ["", "utf-8", "utf-16"])
@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"\uDFFF": 1}', '["x\ud800y"]', r'[["\ud83d \ude00"]]'])
def test_half_a_surrogate_pair_is_refused(text: str, encoding: str) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        parse_json(text.encode(encoding, "surrogatepass") if encoding else text)


@pytest.mark.parametrize("text", [r'{"a": "\ud83d\ude00"}', r'["\\ud800"]', '["\U0001f600", NaN]'])
def test_whole_pairs_and_what_only_looks_like_one_are_read(text: str) -> None:
    assert json.dumps(parse_json(text.encode())) == json.dumps(json.loads(text))


def test_what_is_nested_too_deep() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 200_000)
