"""Graphs of opset 7 to 12 come to 13 with the same numbers, operator by operator; what cannot be lifted is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.canon.lift_old import CHANGES, REFUSED, TO, LiftOld, obstacle, refuse_old
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import OLDEST_LIFTED
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Array
from tests.support.inserting import run
from tests.unit.passes.adapt.test_lift import _incompatible as incompatible

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def single(
    op_type: str,
    opset: int,
    constants: dict[str, Array] | None = None,
    *,
    outputs: int = 1,
    ranked: bool = True,
    **attributes: object,
) -> onnx.ModelProto:
    """x through an operator that neither reads nor gives a value of known rank unless asked for."""
    names = [f"y{n}" for n in range(outputs)]
    shape = ["a", "b", "c"] if ranked else None
    nodes = [
        helper.make_node("Identity", ["x"], ["value"]),
        helper.make_node(op_type, ["value", *(constants or {})], names, name="node", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    assert LiftOld()(graph).modified
    result = ir.to_proto(graph)
    assert {o.domain: o.version for o in result.opset_import}[""] == TO
    return result


CASES: dict[str, list[tuple[int, dict[str, object]]]] = {
    "Softmax": [
        (11, {}),
        (11, {"axis": 0}),
        (12, {"axis": 2}),
        (11, {"axis": -1}),
        (9, {"axis": 1}),
        (11, {"axis": -2}),
    ],
    "LogSoftmax": [(11, {}), (12, {"axis": 2})],
    "Hardmax": [(11, {}), (11, {"axis": 2})],
    "ReduceSum": [(11, {"axes": [1]}), (7, {}), (12, {"axes": [0, 2], "keepdims": 0})],
    "Unsqueeze": [(11, {"axes": [0, 4]})],
    "Squeeze": [(11, {})],
    "Split": [(11, {"axis": 2, "split": [1, 3]}), (11, {"axis": 2})],
    "Clip": [(9, {"min": -0.5, "max": 0.5}), (10, {"max": 0.1}), (7, {})],
    "Pad": [(10, {"pads": [0, 1, 0, 0, 2, 1], "value": 0.5, "mode": "constant"}), (7, {"pads": [0, 1, 0, 0, 0, 0]})],
    "Slice": [(9, {"starts": [1], "ends": [3], "axes": [2]}), (7, {"starts": [0, 1], "ends": [1, -1]})],
    "TopK": [(9, {"k": 2})],
    "Dropout": [(11, {"ratio": 0.3}), (7, {})],
}


@pytest.mark.parametrize("ranked", [True, False], ids=["ranked", "no shape"])
@pytest.mark.parametrize(
    ("op_type", "opset", "attributes"),
    [(op, opset, attributes) for op, rows in CASES.items() for opset, attributes in rows],
)
def test_an_operator_gives_what_it_gave(op_type: str, opset: int, attributes: dict[str, object], ranked: bool) -> None:
    outputs = 2 if op_type in ("Split", "TopK") else 1
    model = single(op_type, opset, outputs=outputs, ranked=ranked, **attributes)
    if op_type == "TopK":
        model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    for before, after in zip(run(model, {"x": X}), run(lifted(model), {"x": X}), strict=True):
        np.testing.assert_array_equal(after, before)


def test_scatter_has_another_name_now() -> None:
    constants: dict[str, Array] = {"i": np.array([[[0, 2, 1, 0]]]), "u": np.ones((1, 1, 4), np.float32)}
    model = single("Scatter", 10, constants, axis=1)
    after = lifted(model)
    assert [node.op_type for node in after.graph.node] == ["Identity", "ScatterElements"]
    [one], [other] = (run(m, {"x": X}) for m in (model, after))
    np.testing.assert_array_equal(other, one)


def test_batch_normalization_says_no_more_that_it_is_spatial() -> None:
    ones: dict[str, Array] = {name: np.ones(3, np.float32) * n for n, name in enumerate(["s", "b", "m", "v"], 1)}
    model = single("BatchNormalization", 8, ones, spatial=1)
    [one], [other] = (run(m, {"x": X}) for m in (single("BatchNormalization", 9, ones), lifted(model)))
    np.testing.assert_array_equal(other, one)


def test_every_change_has_a_case() -> None:
    assert set(CHANGES) - {"Scatter", "BatchNormalization"} == set(CASES)


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize(
    "shape", [Decoder(kv_heads=1, tied=True), Decoder(experts=2, capped=True)], ids=["plain", "experts"]
)
def test_a_decoder_gives_what_it_gave(tmp_path: Path, opset: int, shape: Decoder) -> None:
    model = decoder(shape, opset=12)
    if opset < 12:  # what the builder compares by is of 12
        for node in model.graph.node:
            node.op_type = {"LessOrEqual": "Less"}.get(node.op_type, node.op_type)
        model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "model.onnx")
    graph = load_graph(tmp_path / "model.onnx")
    Canonicalize()(graph)
    np.testing.assert_allclose(run(ir.to_proto(graph), token_feeds())[0], run(model, token_feeds())[0], atol=1e-5)


def test_inside_of_branches_too() -> None:
    inner = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["inner"], name="soft")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["sum"], axes=[1], name="sum")],
        "else",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
    )
    for chosen in (True, False):
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", "c"])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                [numpy_helper.from_array(np.array(chosen), "c")],
            ),
            opset_imports=[helper.make_opsetid("", 11)],
            ir_version=6,
        )
        [before], [after] = (run(m, {"x": X}) for m in (model, lifted(model)))
        np.testing.assert_array_equal(after, before)


def test_names_and_metadata_stay() -> None:
    model = ir.from_proto(single("Softmax", 11))
    model.graph[1].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'here']"
    LiftOld()(model)
    [node] = [node for node in model.graph if node.op_type == "Softmax"]
    assert (node.name, dict(node.metadata_props)) == ("node", {"pkg.torch.onnx.name_scopes": "['', 'here']"})
    assert [value.name for value in model.graph.outputs] == ["y0"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (single("Identity", OLDEST_LIFTED - 1), "before 7"),
        (single("Resize", 10, {"s": np.ones(3, np.float32)}), "Resize 'node'"),
        (single("Upsample", 9, {"s": np.ones(3, np.float32)}), "Upsample 'node'"),
        (single("BatchNormalization", 8, {n: np.ones(3, np.float32) for n in "sbmv"}, spatial=0), "BatchNormalization"),
    ],
)
def test_what_cannot_be_lifted_stays_and_is_refused_with_the_reason(model: onnx.ModelProto, message: str) -> None:
    graph = ir.from_proto(model)
    before = ir.to_proto(graph).SerializeToString()
    assert not LiftOld()(graph).modified
    assert ir.to_proto(graph).SerializeToString() == before
    assert message in str(obstacle(graph))
    with pytest.raises(GraphError, match="export the model again with opset 13") as refused:
        refuse_old(graph, "model.onnx")
    assert message in refused.value.what
    assert set(REFUSED) >= {"Resize", "Upsample", "Scan"}


def test_a_newer_graph_stays() -> None:
    graph = ir.from_proto(single("Softmax", TO))
    assert not LiftOld()(graph).modified
    refuse_old(graph, "model.onnx")


@pytest.mark.parametrize("opset", range(OLDEST_LIFTED, TO))
def test_every_operator_that_changed_is_known(opset: int) -> None:
    """As far as onnx's own history of schemas tells."""
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    changed = set()
    for name in names:
        try:
            old, new = (onnx.defs.get_schema(name, version, "") for version in (opset, TO))
        except onnx.defs.SchemaError:
            continue  # newer than this opset
        if not old.deprecated and incompatible(old, new):
            changed.add(name)
    known = {name for table in (CHANGES, REFUSED) for name, (since, _) in table.items() if opset < since}
    assert changed <= known
    assert changed


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [
        ([("Reshape", ["x", "three"], {})], 3),
        ([("Reshape", ["x", "three"], {}), ("Add", ["v0", "x"], {})], None),
        (
            [("Reshape", ["x", "three"], {}), ("Transpose", ["v0"], {"perm": [0, 2, 1]}), ("MatMul", ["v0", "v1"], {})],
            3,
        ),
        ([("Reshape", ["x", "three"], {}), ("ReduceSum", ["v0"], {"axes": [1], "keepdims": 0})], 2),
        ([("Reshape", ["x", "three"], {}), ("Unsqueeze", ["v0"], {"axes": [0]}), ("Sigmoid", ["v1"], {})], 4),
    ],
)
def test_a_softmax_over_the_last_axis_stays_one(
    nodes: list[tuple[str, list[str], dict[str, object]]], rank: int
) -> None:
    """Attention is known by it: how many axes there are is told by operators where shapes do not."""
    made = [helper.make_node(op, ins, [f"v{n}"], name=f"n{n}", **more) for n, (op, ins, more) in enumerate(nodes)]
    made.append(helper.make_node("Softmax", [f"v{len(nodes) - 1}"], ["y"], name="soft", axis=(rank or 3) - 1))
    graph = helper.make_graph(
        made,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("three", TensorProto.INT64, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    assert ("Flatten" in [node.op_type for node in lifted(model).graph.node]) is (rank is None)
