"""What every case of a refusal gets: a block that must end in it."""

from __future__ import annotations

import pytest

from tests.support.following import Told, named


@pytest.fixture
def refusal(request: pytest.FixtureRequest) -> Told:
    """The refusal that a test is marked to follow."""
    mark = request.node.get_closest_marker("follows")
    assert mark is not None
    arguments = {key: value for key, value in mark.kwargs.items() if key != "outside"}
    return Told(named(*mark.args, **arguments))
