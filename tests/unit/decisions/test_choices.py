"""Experts: a range is trusted only where enough tokens made it."""

from __future__ import annotations

import numpy as np
import pytest

from spq_graph.decisions.choices import Choice, start
from spq_graph.documents.plan import Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site


def chosen(tokens: int, least: int, *, expert: int | None = 3, role: Role = Role.EXPERT_DOWN) -> Choice:
    """What is known at first of a site that so many tokens reached."""
    site = Site(key="e", node="node_e", role=role, layer=0, expert=expert, shape=(8, 4), input="in_e")
    maxima, ids = np.ones((1, tokens), np.float32), np.full((1, tokens), 7)
    channels, mask = np.ones(8, np.float32), np.ones_like(ids)
    seen = ValueRange.observe(-maxima, maxima, (-channels, channels), ids, mask) if tokens else None
    return start(site, Precision.FP32, seen, Recipe(min_expert_tokens=least))


@pytest.mark.parametrize(("tokens", "least", "trusted"), [(64, 64, True), (63, 64, False), (0, 1, False), (1, 0, True)])
@pytest.mark.parametrize("role", [Role.EXPERT_DOWN, Role.EXPERT_GATE])
def test_an_expert_is_trusted_from_so_many_tokens_on(tokens: int, least: int, trusted: bool, role: Role) -> None:
    choice = chosen(tokens, least, role=role)
    assert choice.free is trusted
    assert choice.precision is (Precision.INT8 if trusted else Precision.FP32)
    if not trusted:
        assert choice.reason is Reason.TOO_FEW_TOKENS
        assert f"expert 3 saw {tokens} tokens" in (choice.note or "")
        assert "calibrate on more text" in (choice.note or "")


def test_without_a_minimum_nothing_seen_is_still_no_range() -> None:
    assert chosen(0, 0).reason is Reason.UNSUPPORTED


def test_other_sites_need_no_minimum() -> None:
    assert chosen(3, 64, expert=None, role=Role.GLU_DOWN).free


def test_the_default() -> None:
    assert Recipe().min_expert_tokens == 64
