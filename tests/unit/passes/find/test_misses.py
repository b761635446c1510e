"""What looks like a GLU and is none, with the reason; and what is one all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from spq_graph.passes.find.identify import require_glu
from spq_graph.terms.errors import GraphError
from spq_graph.terms.site import Role
from tests.support.finding import FLOAT, found_in, mlp, roles, silu_product
from tests.support.graphs import Builder


def _doubled(b: Builder, value: str) -> str:
    elu = b.op("Elu", value)
    return str(b.op("Add", elu, elu))


def _rms_norm(b: Builder, value: str, divided: bool) -> str:
    squares = b.op("Pow", value, b.number(2.0))
    mean = b.op("Add", b.op("ReduceMean", squares, b.const([-1], np.int64)), b.number(1e-5))
    root = b.op("Sqrt", mean)
    normalized = b.op("Div", value, root) if divided else b.op("Mul", b.op("Reciprocal", root), value)
    return str(b.op("Mul", b.const(np.ones(6, np.float32)), normalized))


# As BitNet and others with sub-norms have them.
NORMS: dict[str, Callable[[Builder, str], str]] = {
    "LayerNormalization": lambda b, v: b.op("LayerNormalization", v, b.const(np.ones(6, np.float32))),
    "RMSNormalization": lambda b, v: b.op("RMSNormalization", v, b.const(np.ones(6, np.float32))),
    "product": lambda b, v: _rms_norm(b, v, divided=False),
    "quotient": lambda b, v: _rms_norm(b, v, divided=True),
}


class TestNearMisses:
    @pytest.mark.parametrize(
        ("write", "reason"),
        [
            (lambda b, g, u: b.op("Mul", b.op("Elu", g), u), "looks like a GLU, but Elu ('Elu_2') is not a known gate"),
            (lambda b, g, u: b.op("Mul", u, b.op("Softplus", g)), "but Softplus ('Softplus_2') is not a known gate"),
            (lambda b, g, u: b.op("Mul", _doubled(b, g), u), "but Add ('Add_3'), Elu ('Elu_2') is not a known gate"),
            (lambda b, g, u: b.op("Mul", g, u), "looks like a GLU, but neither branch has an activation"),
        ],
    )
    def test_unknown_activation(self, write: Callable[[Builder, str, str], str], reason: str) -> None:
        found = mlp(write)
        assert found.blocks == []
        assert len(found.unmatched) == 1
        assert reason in found.unmatched[0].reason

    @pytest.mark.parametrize("norm", NORMS)
    def test_norm_in_front_of_down_is_none(self, norm: str) -> None:
        found = mlp(lambda b, gate, up: NORMS[norm](b, silu_product(b, gate, up)), opset=23)
        assert [block.kind for block in found.blocks] == ["swiglu"]
        assert found.unmatched == []
        assert Counter(site.role for site in found.sites) == {Role.GLU_GATE: 1, Role.GLU_UP: 1, Role.GLU_DOWN: 1}

    def test_softmax_in_front_of_down(self) -> None:
        found = mlp(lambda b, gate, up: str(b.op("Softmax", silu_product(b, gate, up))))
        assert found.blocks == []
        assert [u.reason for u in found.unmatched] == [
            "swiglu product feeds no MatMul with a constant weight, but Softmax"
        ]

    def test_no_down(self) -> None:
        b = Builder()
        b.op("Neg", silu_product(b, b.linear("x", 4, 6), b.linear("x", 4, 6)), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 6])}))
        assert [u.reason for u in found.unmatched] == ["swiglu product feeds no MatMul with a constant weight, but Neg"]

    @pytest.mark.parametrize("side", ["gate", "up"])
    def test_dynamic_weight(self, side: str) -> None:
        b = Builder()
        constant, dynamic = b.linear("x", 4, 6), b.op("MatMul", "x", "w")
        gate, up = (dynamic, constant) if side == "gate" else (constant, dynamic)
        b.op("Add", "x", b.linear(silu_product(b, gate, up), 6, 4), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, ["n", 4]), "w": (FLOAT, [4, 6])}, {"y": (FLOAT, ["n", 4])}))
        assert found.blocks == []
        product, glu = found.unmatched
        assert product.reason.startswith("its weight 'w' is an input of the graph")
        assert f"its {side} branch comes from no MatMul with a constant weight" in glu.reason

    def test_refused_with_the_nearest(self) -> None:
        with pytest.raises(GraphError, match=r"no GLU block was found.*Elu \('Elu_2'\).*\n.*--allow-no-glu"):
            require_glu(mlp(lambda b, g, u: str(b.op("Mul", b.op("Elu", g), u))), "here")

    def test_not_refused(self) -> None:
        require_glu(mlp(silu_product), "here")


class TestStillFound:
    @pytest.mark.parametrize(
        "write",
        [
            lambda b, g, u: b.op("Mul", silu_product(b, g, u), b.number(0.5)),
            lambda b, g, u: b.op("Clip", silu_product(b, g, u), b.number(-9.0), b.number(9.0)),
            lambda b, g, u: silu_product(b, b.op("Clip", g, "", b.number(7.0)), b.op("Add", u, b.number(1.0))),
            lambda b, g, u: silu_product(b, b.op("Div", g, b.number(2.0)), u),
            lambda b, g, u: b.op("Reshape", silu_product(b, g, u), b.const([-1, 6], np.int64)),
        ],
        ids=["scaled", "clipped", "clamped as in gpt-oss", "divided gate", "reshaped"],
    )
    def test_with_something_in_between(self, write: Callable[[Builder, str, str], str]) -> None:
        assert [block.kind for block in mlp(write).blocks] == ["swiglu"]

    def test_two_downs(self) -> None:
        b = Builder()
        product = silu_product(b, b.linear("x", 4, 6), b.linear("x", 4, 6))
        b.op("Add", b.linear(product, 6, 4), b.linear(product, 6, 4), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}))
        assert roles(found) == ["glu_gate", "glu_up", "glu_down", "glu_down"]
        assert len(found.blocks) == 1
