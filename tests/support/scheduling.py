"""How tests are shared out where several processes do them: what shares a fixture stays together."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# One set of archives, or of graphs, serves all files of these folders; of the families, each is exported once.
_FOLDERS, _FAMILIES = ("packaging", "sources"), "families"
# What takes longest goes first, so that no process is left alone with it at the end.
_LONGEST = ("sources", "test_embedded", "test_reference")


def group_of(nodeid: str) -> str:
    """The tests that one process does, by what pytest calls one of them."""
    file, _, test = nodeid.partition("::")
    folder = PurePosixPath(file).parent.name
    if folder in _FOLDERS:
        return folder
    family = re.search(r"\[(.*)\]$", test) if folder == _FAMILIES else None
    return f"{folder} {family.group(1)}" if family is not None else file


def begins(item: pytest.Item) -> bool:
    """Whether a test is one of those to begin with."""
    return item.path.stem in _LONGEST or item.path.parent.name in _LONGEST


class ByFixtures(LoadScopeScheduling):  # type: ignore[misc]
    """One group after the other, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
