"""Which outputs continue which inputs of a cache, by the names that exporters give them."""

from __future__ import annotations

import pytest

from spq_graph.terms.cache import continued, is_past


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
        ("past_0", "present_0"),
        ("past_key_values.3.key", "present_key_values.3.key"),
    ],
)
def test_what_goes_out_is_found_by_the_name_of_what_comes_in(past: str, present: str) -> None:
    assert is_past(past)
    assert continued([past], ["logits", present]) == {past: present}


def test_an_input_that_nothing_continues_is_left_out() -> None:
    assert continued(["past_key_values.0.key"], ["logits", "present.1.key"]) == {}
    assert not is_past("position_ids")
