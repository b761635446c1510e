"""An outlier branch that is not the plan's, or not of the source's weight, is refused by name, on every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.terms.targets import PROFILES
from tests.support.tampering import Made, made_for, refused, replaced


@pytest.fixture(params=PROFILES)
def branched(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A layer in every form of a target, with branches of two channels at its integer sites."""
    return made_for(request.param, tmp_path, peeled=2)


def _node(made: Made, op_type: str) -> ir.Node:
    """A node of a branch, by its name."""
    return next(n for n in made[0].graph if n.op_type == op_type and ".branch." in (n.name or ""))


def _constant(made: Made, end: str) -> ir.Value:
    return next(v for name, v in made[0].graph.initializers.items() if ".branch." in name and name.endswith(end))


def test_every_branch_is_the_plans(branched: Made) -> None:
    model, plan, before = branched
    VerifyPlan(plan, before)(model)
    assert sum(n.op_type == "Gather" and ADDED in n.metadata_props for n in model.graph) >= 2


@pytest.mark.parametrize(
    ("constant", "change", "said"),
    [
        (".rows", lambda a: a * np.float32(2), "rows of its outlier branch are not those of the source's weight"),
        (".channels", lambda a: a[::-1].copy(), "gathers other channels than the plan says"),
        (".low", lambda a: a - np.float32(1), "other bounds than its quantizer"),
        (".high", lambda a: a + np.float32(1), "other bounds than its quantizer"),
    ],
)
def test_constants(branched: Made, constant: str, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    replaced(_constant(branched, constant), change)
    assert said in refused(branched)


def test_the_difference_the_other_way_round(branched: Made) -> None:
    sub = _node(branched, "Sub")
    one, other = sub.inputs
    sub.replace_input_with(0, other)
    sub.replace_input_with(1, one)
    assert "no Gather, Clip and Sub stand in its outlier branch" in refused(branched)


def test_another_axis(branched: Made) -> None:
    _node(branched, "Gather").attributes["axis"] = ir.AttrInt64("axis", 0)
    assert "in its outlier branch stands" in refused(branched)


def test_another_activation(branched: Made) -> None:
    gather = _node(branched, "Gather")
    other = next(n.outputs[0] for n in branched[0].graph if n.outputs[0] is not gather.inputs[0])
    gather.replace_input_with(0, other)
    assert "its outlier branch reads something else than its quantizer does" in refused(branched)


def test_a_sum_without_its_branch(branched: Made) -> None:
    total = _node(branched, "Add")
    total.replace_input_with(1, _node(branched, "Sub").outputs[0])
    assert "no MatMul of an outlier branch is added to its product" in refused(branched)


def test_a_branch_that_no_plan_has(branched: Made) -> None:
    model, plan, before = branched
    assert "another quantizer than its range asks for" in refused((model, plan.with_treatments(()), before))


def test_a_plan_whose_branch_is_not_there(tmp_path: Path) -> None:
    model, _, before = made_for("cpu", tmp_path)
    plan = made_for("cpu", tmp_path, peeled=2)[1]
    refused((model, plan, before))
