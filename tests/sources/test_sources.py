"""Graphs that others make: found completely, run, quantized, and explained where they are not; `-m families`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import GraphError
from tests.families.catalogue import FAMILIES
from tests.families.family import LAYERS
from tests.sources.catalogue import BY_NAME, CELLS, roles_of
from tests.sources.examine import Examination, Produced
from tests.sources.matrix import cell, recorded

pytestmark = pytest.mark.families
Examined = Callable[[str, str], Examination]
# What is no linear layer, and said to be none: the angles of rotary embedding are a product with a constant. And a
# table of positions that ids reach through a reshape whose shape only a run knows, as optimum writes it.
EXPECTED = (
    "the constant is the first operand: not a linear layer",
    "it is not known how many axes its ids have; it stays as it is",
)
WHY = {"qwen3": "q_norm_weight / k_norm_weight inputs are not supported", "gemma2": "position_ids"}


@pytest.mark.parametrize(("source", "family"), CELLS)
def test_source(source: str, family: str, examined: Examined, produced: Produced) -> None:
    made, result = BY_NAME[source], examined(source, family)
    outcome, expected = made.outcomes.get(family, "runs"), roles_of(made, family)
    if outcome == "absent":
        assert result.found is None
        assert "not currently supported" in result.error or "not made" in result.error
        return
    assert result.found is not None, result.error
    if outcome == "refused":
        assert "this graph is quantized already" in result.error
        listed = {entry.reason.split(":")[0] for entry in result.found.unmatched}
        assert listed >= {role if layer is None else f"{role} of layer {layer}" for role, layer in expected.values()}
        return
    _check_sites(result, source, family)
    assert recorded()[source][family] == cell(made, family, result.kernels, result.counted)
    if outcome == "runs":
        assert result.error == ""
        _check_numbers(result, half=made.half)
        assert result.cached is (BY_NAME[made.of] if made.of else made).cached
        return
    why = WHY[family] if outcome == "found" else "ReduceSum"
    assert why in result.error
    with pytest.raises(GraphError, match=why):  # it is the graph as we got it that does not run
        Runner(produced.model(source, family)).logits(*[np.ones((2, 4), dtype=np.int64)] * 2)


def _check_sites(result: Examination, source: str, family: str) -> None:
    """Every projection in its role and layer, under its module's name where the source tells names."""
    made, expected = BY_NAME[source], roles_of(BY_NAME[source], family)
    assert result.found is not None
    if made.naming != "none":
        assert {site.key: (site.role.value, site.layer) for site in result.found.sites} == expected
    elif family != "gpt2":  # without names and without a GLU there is nothing to count layers by
        assert result.roles == Counter(expected.values())
    else:
        assert Counter(role for role, _ in result.roles.elements()) == Counter(role for role, _ in expected.values())
    kinds = [(kind, layer) for layer in range(LAYERS) for kind in FAMILIES[family].kinds]
    assert [(block.kind, block.layer) for block in result.found.blocks] == kinds
    assert {entry.reason for entry in result.found.unmatched} <= set(EXPECTED)


def _check_numbers(result: Examination, *, half: bool) -> None:
    """The graph says what torch says, and what was made of it much the same; every planned site runs in integers."""
    assert result.expected is not None
    assert result.floating is not None
    assert result.quantized is not None
    size = np.linalg.norm(result.expected)
    assert np.linalg.norm(result.floating - result.expected) <= (1e-2 if half else 1e-4) * size
    assert np.linalg.norm(result.quantized - result.expected) <= 0.2 * size
    assert result.kernels == result.counted > 0
    assert half or result.greedy
