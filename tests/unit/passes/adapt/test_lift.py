"""Lifting an older graph: the same numbers, names and metadata, and no weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.adapt.lift import CHANGES, FROM_OPSET, NEWEST_OPSET, REFUSED, LiftOpset, obstacle_to
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import outline
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.numbers.fp8 import OLDEST_OPSET
from spq_graph.terms.errors import GraphError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Array, Builder, Glu, glu_model
from tests.support.inserting import activations, applied, plan_for, run

OLD = pytest.mark.parametrize("opset", range(FROM_OPSET, OLDEST_OPSET))


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model after the pass, checked by onnx itself."""
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    assert LiftOpset()(graph).modified
    graph.ir_version = 9  # as it will be once the operator is added
    result = ir.to_proto(graph)
    assert {o.domain: o.version for o in result.opset_import}[""] == OLDEST_OPSET
    onnx.checker.check_model(result, full_check=True)
    return result


@OLD
@pytest.mark.parametrize(
    "shape",
    [Decoder(kv_heads=1, tied=True), Decoder(attention="GroupQueryAttention", kv_heads=1, glu=Glu(width=16))],
    ids=["plain", "fused"],
)
def test_decoder(opset: int, shape: Decoder) -> None:
    model = decoder(shape, opset=opset)
    after = lifted(model)
    np.testing.assert_array_equal(run(after, token_feeds())[0], run(model, token_feeds())[0])


@OLD
def test_fp8_sites_of_an_old_graph(tmp_path: Path, opset: int) -> None:
    """The same result, node by node, as from the same graph in a newer opset."""
    results, names = [], []
    for version in (opset, OLDEST_OPSET):
        path = tmp_path / f"{version}.onnx"
        onnx.save(decoder(Decoder(layers=1, glu=Glu(form="transpose", bias=True)), opset=version), path)
        plan = plan_for(path, token_feeds(), lambda s: Precision.FP32 if s.role is Role.LM_HEAD else Precision.FP8_E4M3)
        made = applied(path, plan, f"{version}.made.onnx")
        results.append(run(made, token_feeds())[0])
        names.append([node.op_type for node in onnx.load(made).graph.node])
    np.testing.assert_array_equal(*results)
    assert names[0] == names[1]


@OLD
def test_names_and_metadata_stay(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(opset=opset, naming="dynamo"), path)
    model = load_graph(path)
    Canonicalize()(model)
    told = [(node.name, node.op_type, dict(node.metadata_props)) for node in model.graph]
    LiftOpset()(model)
    assert [(node.name, node.op_type, dict(node.metadata_props)) for node in model.graph] == told


def test_a_newer_graph_stays(tmp_path: Path) -> None:
    for opset in (OLDEST_OPSET, 24):
        model = ir.from_proto(glu_model(Glu(), opset=opset))
        before = outline(model)
        assert not LiftOpset()(model).modified
        assert (model.graph.opset_imports[""], outline(model)) == (opset, before)


def test_only_where_the_plan_has_fp8_sites(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(glu_model(Glu(), opset=13), path)
    made = applied(path, plan_for(path, {"x": activations(5, 8)}, Precision.INT8))
    assert {o.domain: o.version for o in onnx.load(made).opset_import}[""] == 13


def test_no_weight_is_read(tmp_path: Path) -> None:
    """The weights' file is cut to nothing once the graph is open: reading any of it would fail."""
    path = tmp_path / "model.onnx"
    onnx.save(decoder(opset=17), path, save_as_external_data=True, location="data", size_threshold=64)
    model = load_graph(path)
    Canonicalize()(model)
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert any(isinstance(tensor, ir.ExternalTensor) for tensor in held.values())
    (tmp_path / "data").write_bytes(b"")
    LiftOpset()(model)
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in held.items())


def single(
    op_type: str, opset: int, inputs: dict[str, Array], outputs: int = 1, **attributes: object
) -> onnx.ModelProto:
    """One node; its first input is the graph's, the rest are constants."""
    names = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op_type, list(inputs), names, **attributes)
    first, *rest = inputs
    described = [helper.make_tensor_value_info(first, TensorProto.FLOAT, inputs[first].shape)]
    constants = [numpy_helper.from_array(inputs[name], name) for name in rest]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([node], "g", described, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


X = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
REDUCTIONS = sorted(name for name in CHANGES if name.startswith("Reduce"))


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("attributes", [{}, {"axes": [1]}, {"axes": [-1, 0], "keepdims": 0}], ids=["all", "one", "two"])
def test_reductions(op_type: str, attributes: dict[str, object]) -> None:
    model = single(op_type, 13, {"x": X}, **attributes)
    [before], [after] = (run(m, {"x": X}) for m in (model, lifted(model)))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("sizes", [None, np.array([1, 3], dtype=np.int64)])
def test_split(sizes: Array | None) -> None:
    model = single("Split", 13, {"x": X} | ({"sizes": sizes} if sizes is not None else {}), outputs=2, axis=2)
    for before, after in zip(run(model, {"x": X}), run(lifted(model), {"x": X}), strict=True):
        np.testing.assert_array_equal(after, before)


def test_roi_align() -> None:
    """The default of an attribute changed: what it was has to be said."""
    image = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    rois, batch = np.array([[0.4, 0.7, 4.2, 5.1]], np.float32), np.array([0], np.int64)
    model = single("RoiAlign", 15, {"x": image, "r": rois, "b": batch}, output_height=3, output_width=3)
    [before], [after] = (run(m, {"x": image}) for m in (model, lifted(model)))
    np.testing.assert_array_equal(after, before)


def test_inside_subgraphs() -> None:
    b = Builder(opset=13)
    reduced = helper.make_node("ReduceMax", ["x"], ["r"], axes=[0], keepdims=0)
    branch = helper.make_graph([reduced], "b", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [3])])
    b.op("If", "c", outputs=["y"], then_branch=branch, else_branch=branch)
    model = b.model({"c": (TensorProto.BOOL, []), "x": (TensorProto.FLOAT, [2, 3])}, {"y": (TensorProto.FLOAT, [3])})
    feeds = {"c": np.array(True), "x": X[0, :2, :3]}
    [y] = run(lifted(model), feeds)
    np.testing.assert_array_equal(y, X[0, :2, :3].max(axis=0))


def refused(model: onnx.ModelProto) -> None:
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    LiftOpset()(graph)


class TestRefused:
    def test_too_old(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        model = glu_model(Glu(), opset=12)
        onnx.save(model, path)
        plan = plan_for(path, {"x": activations(5, 8)}, Precision.W8FP8A16)
        model.opset_import[0].version = 6  # before what is lifted to 13
        onnx.save(model, path)
        with pytest.raises(GraphError, match=r"opset 6, which cannot be lifted to 19\n.*opset 19 or later"):
            apply_plan(path, plan)

    def test_training(self) -> None:
        rows = {name: np.ones(3, np.float32) for name in ("s", "b", "m", "v")}
        with pytest.raises(GraphError, match="BatchNormalization in training mode"):
            refused(single("BatchNormalization", 13, {"x": X} | rows, outputs=5))

    @pytest.mark.parametrize("op_type", ["DFT", "GridSample", "GroupNormalization"])
    def test_what_changed_since(self, op_type: str) -> None:
        """On the way to 23; none of them is in the way to 19."""
        inputs = {"DFT": 1, "GridSample": 2, "GroupNormalization": 3}[op_type]
        graph = ir.from_proto(
            helper.make_model(
                helper.make_graph([helper.make_node(op_type, list("xyz")[:inputs], ["o"], name="odd")], "g", [], []),
                opset_imports=[helper.make_opsetid("", 18)],
            )
        )
        obstacle = obstacle_to(graph, NEWEST_OPSET)
        assert obstacle is not None
        assert (obstacle.what, obstacle.where) == (f"{op_type} cannot be lifted", "odd")
        assert obstacle_to(graph, OLDEST_OPSET) is None


def _incompatible(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether a node of the old schema may mean something else in the new one, as far as schemas tell."""
    if [i.name for i in new.inputs[: len(old.inputs)]] != [i.name for i in old.inputs] or new.deprecated:
        return True
    default: Callable[[onnx.defs.OpSchema.Attribute], bytes] = lambda a: a.default_value.SerializeToString()  # noqa: E731
    changed = any(
        name not in new.attributes or default(new.attributes[name]) != default(attribute)
        for name, attribute in old.attributes.items()
    )
    return changed or any(a.required for name, a in new.attributes.items() if name not in old.attributes)


@OLD
@pytest.mark.parametrize("to", [OLDEST_OPSET, NEWEST_OPSET])
def test_every_operator_that_changed_is_known(opset: int, to: int) -> None:
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    there, changed = set(), set()
    for name in names:
        try:
            old, new = (onnx.defs.get_schema(name, version, "") for version in (opset, to))
        except onnx.defs.SchemaError:
            continue  # newer than this opset
        there.add(name)
        if not old.deprecated and _incompatible(old, new):
            changed.add(name)
    known = CHANGES | REFUSED
    # Of these schemas tell nothing: what they mean without an attribute changed, or what sizes an operand has.
    told = there & set(known) - {"Split", "RoiAlign", "GroupNormalization"}
    assert changed == {name for name in told if opset < known[name][0] <= to}
