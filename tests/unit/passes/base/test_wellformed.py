"""Nodes that lack what their operators take are refused by name, whatever they lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from spq_graph.passes.base.wellformed import check_nodes
from spq_graph.terms.errors import GraphError
from tests.fuzz.seeds import SEEDS
from tests.support.graphs import CONTRIB

Ends = list[str]


def graph_with(node: onnx.NodeProto, opset: int = 21) -> ir.Model:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("a", "b", "c")]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", opset), (CONTRIB, 1), ("acme", 1))]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports))


def node(op_type: str, inputs: Ends, **more: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, ["y"], name="odd", **more)


def untyped(sound: onnx.NodeProto, name: str = "bits") -> onnx.NodeProto:
    """With one more attribute, whose type the file leaves out."""
    sound.attribute.add(name=name, i=4)
    return sound


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (node("Mul", ["a"]), "has 1 inputs, where the operator takes 2"),
        (node("Mul", []), "has 0 inputs"),
        (node("Mul", ["a", "b", "c"]), "has 3 inputs"),
        (node("MatMul", ["", "b"]), "lacks its input 0 (A)"),
        (node("Softmax", []), "has 0 inputs"),
        (node("Concat", ["a", "b"]), "lacks its attribute axis"),
        (node("Cast", ["a"]), "lacks its attribute to"),
        (node("Cast", ["a"], to=0), "casts to an element type 0"),
        (node("Cast", ["a"], to=99), "casts to an element type 99"),
        (node("Transpose", ["a"], perm=[0, 7]), "has a permutation [0, 7]"),
        (node("Transpose", ["a"], perm="ab"), "has an attribute perm of type STRING"),
        (node("Gemm", ["a", "b"], alpha="x"), "has an attribute alpha of type STRING"),
        (node("Einsum", ["a", "b"]), "lacks its attribute equation"),
        (node("Constant", []), "has 0 values"),
        (node("Mul", ["a"], domain="acme"), "has 1 inputs"),
        (node("MatMulNBits", ["a", "b", "c"], domain=CONTRIB), "lacks its attribute K"),
        (node("MatMulNBits", ["a", "b", "c"], domain=CONTRIB, K=-1, N=4), "says that K is -1"),
        (node("FusedMatMul", ["a"], domain=CONTRIB), "has 1 inputs"),
        (node("FusedMatMul", ["a", "b"], domain=CONTRIB, alpha="x"), "has an attribute alpha of type STRING"),
        (node("Gelu", [], domain=CONTRIB), "has 0 inputs"),
        (node("SimplifiedLayerNormalization", []), "has 0 inputs"),
        (untyped(node("Mul", ["a", "b"])), "has an attribute bits without a type"),
        (untyped(node("Gelu", ["a"], domain=CONTRIB)), "has an attribute bits without a type"),
        (untyped(node("Anything", ["a"], domain="acme")), "has an attribute bits without a type"),
    ],
    ids=lambda value: f"{value.domain}{value.op_type}" if isinstance(value, onnx.NodeProto) else None,
)
def test_what_a_node_lacks_is_named(wrong: onnx.NodeProto, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        check_nodes(graph_with(wrong), "model.onnx")
    assert says in caught.value.what
    assert "'odd'" in caught.value.what
    assert (caught.value.where, bool(caught.value.remedy)) == ("model.onnx", True)


@pytest.mark.parametrize(
    "sound",
    [
        node("Slice", ["a", "b", "c"]),
        node("Clip", ["a", "", "b"]),
        node("Magic", []),
        node("Magic", ["a"], domain="acme"),
        node("Swish", ["a"]),
        node("Dropout", ["a"]),
    ],
    ids=lambda value: value.op_type,
)
def test_what_is_optional_or_unknown_passes(sound: onnx.NodeProto) -> None:
    check_nodes(graph_with(sound), "")


def test_an_operator_is_held_against_its_own_opset() -> None:
    """The axes of an Unsqueeze are an attribute before opset 13, and an input since."""
    check_nodes(graph_with(node("Unsqueeze", ["a"], axes=[0]), opset=11), "")
    with pytest.raises(GraphError, match="has 1 inputs"):
        check_nodes(graph_with(node("Unsqueeze", ["a"], axes=[0]), opset=13), "")


@pytest.mark.parametrize("seed", SEEDS)
def test_sound_graphs_of_every_kind_pass(seed: str) -> None:
    check_nodes(ir.from_proto(SEEDS[seed]()), "")


def test_functions_and_branches_are_looked_into() -> None:
    """Both hold nodes of their own."""

    def spoiled(seed: str, find: Callable[[onnx.ModelProto], onnx.NodeProto]) -> ir.Model:
        model = SEEDS[seed]()
        del find(model).input[1:]
        return ir.from_proto(model)

    with pytest.raises(GraphError, match=r"else|then"):
        check_nodes(spoiled("branches", lambda m: m.graph.node[-1].attribute[0].g.node[0]), "")
    with pytest.raises(GraphError, match="silu"):
        check_nodes(spoiled("functions", lambda m: m.functions[1].node[1]), "")


def test_a_caller_that_leaves_out_what_a_function_reads_is_refused(tmp_path: Path) -> None:
    from spq_graph.passes.adapt.prepared import canonical

    model = SEEDS["functions"]()
    model.functions[1].input.append("z")
    model.functions[1].node[1].input[1] = "z"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GraphError, match=r"silu.*lacks its input 1"):
        canonical(tmp_path / "model.onnx")
