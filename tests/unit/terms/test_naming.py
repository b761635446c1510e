"""A site is named by its key, the end of it, or a glob; and a slip is answered with the nearest."""

from __future__ import annotations

import pytest

from spq_graph.terms.naming import matches, nearest


def test_patterns_are_globs_or_plain_names() -> None:
    assert matches("*.1.mlp.*", "layers.1.mlp.down_proj", "node_7")
    assert matches("node_7", "layers.1.mlp.down_proj", "node_7")
    assert matches("name[0]", "name[0]")  # a name that looks like a glob still fits itself
    assert not matches("LAYERS.*", "layers.1.mlp.down_proj")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("layers.1.mlp.down_proj", True),
        ("mlp.down_proj", True),
        ("down_proj", True),
        ("*.down_proj", True),
        ("1.mlp.down_proj", True),
        ("proj", False),
        (".down_proj", False),
        ("layers.11.mlp.down_proj", False),
        ("layers.1", False),
        ("", False),
    ],
)
def test_a_site_is_named_by_its_key_the_end_of_it_or_a_glob(pattern: str, fits: bool) -> None:
    assert matches(pattern, "layers.1.mlp.down_proj", "node_7") is fits


def test_what_somebody_may_have_meant() -> None:
    keys = ["layers.0.mlp.down_proj", "layers.0.mlp.up_proj", "lm_head"]
    assert nearest("layers.0.mlp.downproj", keys) == keys[0]
    assert nearest("down_prj", keys) == "down_proj"
    assert nearest("lmhead", keys) == "lm_head"
    assert nearest("nowhere", keys) is None
