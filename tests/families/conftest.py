"""Examinations of families, each made once in a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.families.catalogue import FAMILIES
from tests.families.examine import Examination, examine


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Examination]:
    """What came of a family, by name; exported where it was not yet."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.0")
    known: dict[str, Examination] = {}

    def get(name: str) -> Examination:
        if name not in known:
            known[name] = examine(FAMILIES[name], tmp_path_factory.mktemp(name))
        return known[name]

    return get
