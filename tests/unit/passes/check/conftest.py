"""One inserted graph for each target."""

from __future__ import annotations

from pathlib import Path

import pytest

from spq_graph.terms.targets import PROFILES
from tests.support.tampering import Made, made_for


@pytest.fixture(params=PROFILES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A layer in every form of a target."""
    return made_for(request.param, tmp_path)
