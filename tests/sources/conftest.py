"""The graphs of the catalogue, made once in a session, and what came of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sources.examine import Examination, Produced, examine, produce_all


@pytest.fixture(scope="session")
def environments(pytestconfig: pytest.Config) -> Path:
    """Where environments are kept between runs."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("environments")


@pytest.fixture(scope="session")
def produced(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Produced:
    """Every graph."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.0")
    return produce_all(tmp_path_factory.mktemp("sources"), environments)


@pytest.fixture(scope="session")
def examined(produced: Produced, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Examination]:
    """What came of a graph, by source and family."""
    known: dict[tuple[str, str], Examination] = {}

    def get(source: str, family: str) -> Examination:
        if (source, family) not in known:
            known[source, family] = examine(produced, source, family, tmp_path_factory.mktemp("examined"))
        return known[source, family]

    return get
