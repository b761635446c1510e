"""The matrix of docs/supported.md says what was recorded; needs no export."""

from __future__ import annotations

from tests.families.catalogue import FAMILIES
from tests.families.family import LAYERS
from tests.families.matrix import PAGE, recorded, with_table


def test_the_page_says_what_is_recorded() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text, recorded()) == text


def test_the_record_says_what_is_expected() -> None:
    rows = recorded()
    assert list(rows) == list(FAMILIES)
    for name, family in FAMILIES.items():
        assert rows[name]["glu_blocks"] == LAYERS * len(family.kinds)
        assert rows[name]["exports"] is not bool(family.refused)
