"""The matrix of sources in docs/supported.md says what was recorded; makes no graph."""

from __future__ import annotations

from tests.sources.catalogue import SOURCES
from tests.sources.matrix import PAGE, recorded, with_table


def test_the_page_says_what_is_recorded() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text, recorded()) == text


def test_every_cell_is_recorded_and_every_other_outcome_is_explained() -> None:
    cells = recorded()
    assert list(cells) == [source.name for source in SOURCES]
    for source in SOURCES:
        assert tuple(cells[source.name]) == source.families
        for family, text in cells[source.name].items():
            kernels, _, sites = text.partition("/")
            assert kernels == sites or source.outcomes[family] in ("absent", "refused") or source.notes[family]
