"""The function that a call of our operators has is ours, or the file is refused when read; a missing one is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.passes.base.marks import DOMAIN, OP
from spq_graph.passes.check.functions import refuse_other_functions
from spq_graph.passes.forms.int8_function import Int8Kind, int8_matmul_function
from spq_graph.terms.errors import GraphError
from tests.fuzz.seeds import SEEDS
from tests.support.command import done, spq
from tests.support.decoders import write_ids
from tests.support.operator_files import NEEDS_LIBRARY

KINDS = [Int8Kind(by_token, branch) for by_token in (False, True) for branch in (False, True)]


def renamed(function: onnx.FunctionProto) -> None:
    """Another name for a value, wherever it stands: the numbers are the same, and nobody could tell without trying."""
    for node in function.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "W" else name for name in names]


def computing_otherwise(function: onnx.FunctionProto) -> None:
    next(node for node in function.node if node.op_type == "Mul").op_type = "Add"


def of_another_opset(function: onnx.FunctionProto) -> None:
    function.opset_import[0].version -= 1


def an_overload(function: onnx.FunctionProto) -> None:
    function.overload = "other"


OTHERS = (renamed, computing_otherwise, of_another_opset, an_overload)


def fp8() -> onnx.ModelProto:
    """A decoder with one call of the FP8 operator."""
    return SEEDS["ours"]()


def int8(kind: Int8Kind) -> onnx.ModelProto:
    node = helper.make_node(kind.op_type, kind.inputs, ["Y"], domain=DOMAIN, K=8, N=8)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info(n, 1, None) for n in kind.inputs], [])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    function = ir.to_proto(int8_matmul_function(kind, 21))
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("model", [fp8, *(lambda kind=kind: int8(kind) for kind in KINDS)], ids=[OP, *map(str, KINDS)])
def test_another_function(model: Callable[[], onnx.ModelProto], change: Callable[[onnx.FunctionProto], None]) -> None:
    proto = model()
    refuse_other_functions(ir.from_proto(proto), "model.onnx")
    change(proto.functions[0])
    with pytest.raises(GraphError, match="is not the one that stands for the operator") as caught:
        refuse_other_functions(ir.from_proto(proto), "model.onnx")
    assert proto.functions[0].name in caught.value.what


def test_a_function_that_nothing_calls_is_nothing_to_refuse() -> None:
    proto = fp8()
    renamed(proto.functions[0])
    for node in proto.graph.node:
        if node.op_type == OP:
            node.op_type, node.domain = "Sum", ""
    refuse_other_functions(ir.from_proto(proto), "model.onnx")


def verbs(model: Path, ids: Path) -> dict[str, list[object]]:
    data = ["--calibration", ids, "--window", 16]
    return {
        "inspect": ["inspect", model],
        "eval": ["eval", model, "--text", ids, "--window", 16],
        "calibrate": ["calibrate", model, "-o", model.with_name("ranges"), *data],
        "dry run": ["quantize", model, "-o", model.with_name("out"), "--dry-run", *data],
        "quantize": ["quantize", model, "-o", model.with_name("out"), "--no-eval", "--spike-ratio", 20, *data],
        "diff": ["diff", model, model],
    }


@pytest.mark.parametrize("verb", verbs(Path("model"), Path("ids")))
def test_every_verb_says_so(tmp_path: Path, verb: str) -> None:
    model, ids = tmp_path / "model.onnx", write_ids(tmp_path / "ids.npz", 4, 16)
    proto = fp8()
    renamed(proto.functions[0])
    onnx.save(proto, model)
    result = spq(*verbs(model, ids)[verb])
    assert result.code == 1
    assert "function spq::Fp8MatMul is not the one" in result.err
    assert "report" not in result.err


@NEEDS_LIBRARY
@pytest.mark.parametrize("seed", ["ours", "by_token"])
def test_a_file_without_the_function_gets_it(tmp_path: Path, seed: str) -> None:
    """The library runs it as it is; what is made of it runs without one as well."""
    model, ids = tmp_path / "model.onnx", write_ids(tmp_path / "ids.npz", 4, 16)
    proto = SEEDS[seed]()
    [function] = proto.functions
    del proto.functions[:]
    onnx.save(proto, model)
    done(*verbs(model, ids)["quantize"])
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert [kept.name for kept in made.functions] == [function.name]


def test_calls_in_branches(tmp_path: Path) -> None:
    model, ids = tmp_path / "model.onnx", write_ids(tmp_path / "ids.npz", 4, 16)
    proto = fp8()
    call = next(node for node in proto.graph.node if node.op_type == OP)
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = onnx.NodeProto()
        inner.CopyFrom(call)
        inner.name, inner.output[0] = f"{call.name}.{name}", name
        branches[name] = helper.make_graph([inner], name, [], [helper.make_tensor_value_info(name, 1, ["b", "s", 32])])
    call.CopyFrom(helper.make_node("If", ["condition"], [call.output[0]], name="if", **branches))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    onnx.save(proto, model)
    done(*verbs(model, ids)["quantize"], "--allow-no-glu")
    assert [function.name for function in onnx.load(tmp_path / "out" / "model.onnx").functions] == [OP]
