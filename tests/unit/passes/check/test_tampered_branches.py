"""An outlier branch that is not the plan's, or not of the source's weight, is refused by name, on every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.forms.int8_function import Int8Kind
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES
from tests.support.tampering import Made, codes, key_of, made_for, refused, replaced


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
    plain = sum(n.op_type == "Gather" and ADDED in n.metadata_props for n in model.graph)
    own = sum(n.op_type == "Int8MatMulBranch" for n in model.graph)
    assert (plain, own) == (1, 1) if plan.recipe.target == "cpu" else plain >= 2 and not own


@pytest.mark.parametrize(
    ("constant", "change", "said"),
    [
        (".rows", lambda a: a * a.dtype.type(2), "rows of its outlier branch are not those of the source's weight"),
        (".channels", lambda a: a[::-1].copy(), "has other channels than the plan says"),
    ],
)
def test_constants(branched: Made, constant: str, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    replaced(_constant(branched, constant), change)
    assert said in refused(branched)


def test_rows_that_are_rounded_to_something_else(branched: Made) -> None:
    _node(branched, "Cast").attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    assert "in its outlier branch stands" in refused(branched)


def test_rows_without_their_cast(branched: Made) -> None:
    cast = _node(branched, "Cast")
    for use in list(cast.outputs[0].uses()):
        use.node.replace_input_with(use.idx, cast.inputs[0])
    assert "in its outlier branch stands no Cast of its rows" in refused(branched)


def test_codes_in_the_rows_of_outlier_channels(branched: Made) -> None:
    """They would count twice: in integers, and in the branch."""
    model, plan, _ = branched
    node = _node(branched, "MatMul").metadata_props[ADDED]
    first = next(site for site in plan.sites if site.node == node)
    held = next(v for v in codes(model) if key_of(v) == first.key)
    row = plan.peels[first.input].channels[0]

    def count_again(array: np.ndarray) -> np.ndarray:
        array[row] = 3
        return array

    replaced(held, count_again)
    assert "of its weight are not the source's within half a step" in refused(branched)


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
    total.replace_input_with(1, _node(branched, "Gather").outputs[0])
    assert "no Gather and MatMul of an outlier branch are added to its product" in refused(branched)


def test_a_branch_that_no_plan_has(branched: Made) -> None:
    model, plan, before = branched
    assert "another quantizer than its range asks for" in refused((model, plan.with_treatments(()), before))


def test_a_plan_whose_branch_is_not_there(tmp_path: Path) -> None:
    model, _, before = made_for("cpu", tmp_path)
    plan = made_for("cpu", tmp_path, peeled=2)[1]
    refused((model, plan, before))


class TestOperator:
    @pytest.fixture(params=[Precision.INT8, Precision.W8A8_TOKEN])
    def made(self, request: pytest.FixtureRequest, tmp_path: Path) -> Made:
        return made_for("cpu", tmp_path, peeled=2, wanted=dict.fromkeys(Role, request.param))

    @staticmethod
    def node(made: Made) -> ir.Node:
        kinds = {Int8Kind(by_token, branch=True).op_type for by_token in (False, True)}
        return next(n for n in made[0].graph if n.op_type in kinds)

    def constant(self, made: Made, end: str) -> ir.Value:
        return next(v for v in self.node(made).inputs if v is not None and (v.name or "").endswith(end))

    def test_rows(self, made: Made) -> None:
        replaced(self.constant(made, ".rows"), lambda a: a[::-1].copy())
        assert "rows of its outlier branch are not those of the source's weight" in refused(made)

    def test_channels(self, made: Made) -> None:
        replaced(self.constant(made, ".channels"), lambda a: a + np.int64(1))
        assert "has other channels than the plan says" in refused(made)

    def test_codes_in_the_rows_of_outlier_channels(self, made: Made) -> None:
        replaced(self.constant(made, ".panels"), lambda a: np.full_like(a, 3))
        refused(made)

    def test_without_its_branch(self, made: Made) -> None:
        model, plan, before = made
        refused((model, plan.with_treatments(()), before))

    def test_the_other_kind(self, made: Made) -> None:
        node = self.node(made)
        by_token = "ByToken" in node.op_type
        node.op_type = Int8Kind(by_token=not by_token, branch=True).op_type
        said = ("w8a8_token", "int8") if by_token else ("int8", "w8a8_token")
        assert "planned {}, found {}".format(*said) in refused(made)

    def test_a_bias(self, made: Made) -> None:
        replaced(
            next(v for v in self.node(made).inputs if v is not None and v.name == "spq_graph.no_bias"), np.ones_like
        )
        assert "its node adds a bias, where the plan asks for none" in refused(made)


@pytest.mark.parametrize(
    ("end", "change"), [(".scale", lambda a: a * a.dtype.type(2)), (".zero_point", lambda a: a + 1)]
)
def test_another_range_of_the_operator(tmp_path: Path, end: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    made = made_for("cpu", tmp_path, peeled=2, wanted={})
    node = next(n for n in made[0].graph if n.op_type == "Int8MatMulBranch")
    replaced(next(v for v in node.inputs[4:6] if v is not None and (v.name or "").endswith(end)), change)
    assert "another quantizer than its range asks for" in refused(made)
