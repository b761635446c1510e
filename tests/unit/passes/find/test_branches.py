"""Adapters of low rank beside projections: the projections have their roles, with as many adapters as there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.graphs import Array, Builder
from tests.support.inserting import applied, kernels, plan_for, run

WIDTH, INNER, RANK = 32, 48, 4
ROLES = [Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_O, Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]


class Adapted(Builder):
    """Linear layers with adapters.

    `count` of them, in front of or behind a bias, as constants or as inputs of the graph.
    """

    def __init__(self, count: int = 1, bias: str = "", exchanged: bool = False, other: str = "") -> None:
        super().__init__(seed=11)
        self.count, self.bias, self.exchanged, self.other = count, bias, exchanged, other
        self.adapters: dict[str, Array] = {}

    def weight(self, *shape: int) -> str:
        array = self.random(*shape)
        if not self.exchanged:
            return self.const(array)
        name = f"adapter{len(self.adapters)}"
        self.adapters[name] = array
        return name

    def layer(self, value: str, rows: int, columns: int) -> str:
        total = self.op("MatMul", value, self.const(self.random(rows, columns)), name=f"base{len(self.nodes)}")
        if self.bias == "first":
            total = self.op("Add", total, self.const(self.random(columns)))
        for _ in range(self.count):
            x = self.op("Dropout", self.other or value)
            low = self.op("MatMul", x, self.weight(rows, RANK))
            term = self.op("Mul", self.op("MatMul", low, self.weight(RANK, columns)), self.number(2.0))
            total = self.op("Add", total, term)
        if self.bias == "last":
            total = self.op("Add", self.const(self.random(columns)), total)
        return str(total)

    def decoder(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """One layer with an attention of one head and a GLU."""
        q, k, v = (self.layer("x", WIDTH, WIDTH) for _ in range(3))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 1]))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        value = self.op("Add", "x", self.layer(mixed, WIDTH, WIDTH))
        gate, up = (self.layer(value, WIDTH, INNER) for _ in range(2))
        product = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        self.op("Add", value, self.layer(product, INNER, WIDTH), outputs=["y"])
        kind = (TensorProto.FLOAT, ["batch", "tokens", WIDTH])
        inputs: dict[str, Any] = {"x": kind}
        inputs |= {name: (TensorProto.FLOAT, list(array.shape)) for name, array in self.adapters.items()}
        x = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
        return self.model(inputs, {"y": kind}), {"x": x} | self.adapters


def found_in(model: onnx.ModelProto) -> Identified:
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return identify(graph)


@pytest.mark.parametrize("exchanged", [False, True], ids=["constant", "exchanged"])
@pytest.mark.parametrize("bias", ["", "first", "last"])
@pytest.mark.parametrize("count", [1, 2])
def test_projections_keep_their_roles(count: int, bias: str, exchanged: bool) -> None:
    found = found_in(Adapted(count, bias, exchanged).decoder()[0])
    assert [site.role for site in found.sites if site.node.startswith("base")] == ROLES
    adapters = [site for site in found.sites if not site.node.startswith("base")]
    assert {site.role for site in adapters} <= {Role.OTHER}
    assert len(adapters) == (0 if exchanged else 2 * count * len(ROLES))
    assert len(found.blocks) == 1
    reasons = {missed.reason.partition("'")[0] for missed in found.unmatched}
    assert reasons == ({"its weight "} if exchanged else set())
    assert len(found.unmatched) == (2 * count * len(ROLES) if exchanged else 0)


def test_what_is_computed_from_another_value_is_no_adapter() -> None:
    """A sum of two branches that read different values is no adapted projection."""
    model, _ = Adapted(other="elsewhere").decoder()
    model.graph.input.append(onnx.helper.make_tensor_value_info("elsewhere", TensorProto.FLOAT, None))
    assert not found_in(model).blocks


def test_it_runs_in_integers(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model, feeds = Adapted().decoder()
    onnx.save(model, path)
    made = applied(path, plan_for(path, feeds, Precision.INT8))
    ran = kernels(made)
    # The first of an adapter's products feeds a quantizer, which its kernel takes in.
    assert (ran["MatMulIntegerToFloat"], ran["QLinearMatMul"]) == (2 * len(ROLES), len(ROLES))
    before, after = run(path, feeds)[0], run(made, feeds)[0]
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


def test_time_stays_linear_in_a_long_residual_stream() -> None:
    """Sums of sums are followed a few steps back, not to the start."""
    b = Builder(seed=1)
    value, weight = "x", b.const(b.random(WIDTH, WIDTH))
    for _ in range(3000):
        value = b.op("Add", value, b.op("MatMul", b.op("MatMul", value, weight), weight))
    kind = (TensorProto.FLOAT, ["tokens", WIDTH])
    found = found_in(b.model({"x": kind}, {value: kind}))
    assert len(found.sites) == 6000
