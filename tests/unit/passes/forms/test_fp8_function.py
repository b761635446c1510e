"""The operator's function: valid for any opset, one for a model, and ours alone is not inlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.base.marks import DOMAIN, OP, VERSION
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import digest_of, load_graph
from spq_graph.passes.find.quantized import QUANTIZED_OPS
from spq_graph.passes.forms.fp8_function import add_function, fp8_matmul_function
from spq_graph.passes.numbers.fp8 import E5M2, fp8_matmul_reference, pack_panels
from tests.support.graphs import Glu, glu_model
from tests.support.inserting import run


@pytest.mark.parametrize("opset", range(19, 27))
def test_function_is_valid(opset: int) -> None:
    function = ir.to_proto(fp8_matmul_function(opset))
    assert (function.domain, function.name, function.overload) == ("spq", "Fp8MatMul", "")
    assert list(function.input) == ["A", "B", "b_scale", "a_scale"]
    assert list(function.attribute) == ["K", "N"]  # no default: without its sizes a call means nothing
    assert {a.name: a.i for a in function.attribute_proto} == {"a_type": 1, "fast": 0}
    assert [(o.domain, o.version) for o in function.opset_import] == [("", opset)]
    onnx.checker.check_function(function, _context(opset))


def _context(opset: int) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 9
    context.opset_imports = {"": opset}
    return context


def test_is_added_once() -> None:
    model = ir.from_proto(glu_model(Glu(), opset=19))
    model.ir_version = 8
    for _ in range(2):
        add_function(model)
    assert list(model.functions) == [(DOMAIN, OP, "")]
    assert model.graph.opset_imports[DOMAIN] == VERSION
    assert model.ir_version == 9  # the first that has FP8


def call(weights: int, attributes: dict[str, int], b_scale: np.ndarray) -> onnx.ModelProto:
    """One call, as another writer might put it; `weights` is the element type of the codes."""
    codes = np.random.default_rng(0).integers(0, 100, (5, 35), dtype=np.uint8)
    panels = pack_panels(codes)
    tensors = [
        helper.make_tensor("B", weights, panels.shape, panels.tobytes(), raw=True),
        numpy_helper.from_array(b_scale, "s"),
        numpy_helper.from_array(np.float32(0.5), "a"),
    ]
    node = helper.make_node(OP, ["x", "B", "s", "a"], ["y"], domain=DOMAIN, name="call", **attributes)
    described = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["t", w]) for n, w in (("x", 5), ("y", 35))]
    graph = helper.make_graph([node], "g", described[:1], described[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    function = ir.to_proto(fp8_matmul_function(21))
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("b_scale", [np.float32(0.25), np.float32([0.25]), np.linspace(0.1, 1, 35, dtype=np.float32)])
def test_any_form_of_the_contract(b_scale: np.ndarray) -> None:
    """Weights in E5M2, which we do not write, and every form of the weight's scale."""
    model = call(onnx.TensorProto.FLOAT8E5M2, {"K": 5, "N": 35, "a_type": 19}, b_scale)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    [y] = ReferenceEvaluator(model).run(None, {"x": x})
    panels = np.frombuffer(model.graph.initializer[0].raw_data, np.uint8).reshape(2, 3, 64)
    arguments = (x, panels, b_scale, np.float32(0.5), (5, 35))
    # Five products in float32.
    np.testing.assert_allclose(y, fp8_matmul_reference(*arguments, activations=E5M2, weights=E5M2), rtol=1e-5)


def test_defaults_of_the_attributes() -> None:
    """Without a_type, activations are as they are; onnx's reference evaluator knows no defaults of functions."""
    x = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    given, left_out = (
        run(call(17, {"K": 5, "N": 35, **more}, np.float32(1.0)), {"x": x})[0]
        for more in ({"a_type": 1, "fast": 1}, {})
    )
    np.testing.assert_array_equal(given, left_out)


class TestReading:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        model = call(17, {"K": 5, "N": 35, "a_type": 17}, np.float32(1.0))
        negate = helper.make_function(
            "local", "Negate", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 21)]
        )
        model.functions.append(negate)
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.graph.node[0].output[0] = "positive"
        model.graph.node.append(helper.make_node("Negate", ["positive"], ["y"], domain="local"))
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    def test_only_ours_is_not_inlined(self, path: Path) -> None:
        model = load_graph(path)
        Canonicalize()(model)
        assert [node.op_type for node in model.graph] == ["Fp8MatMul", "Neg"]
        assert list(model.functions) == [(DOMAIN, OP, "")]
        assert [node.op_type for node in model.functions[DOMAIN, OP, ""]] == [
            node.op_type for node in fp8_matmul_function(21)
        ]

    def test_counts_as_quantized(self) -> None:
        assert OP in QUANTIZED_OPS

    def test_has_a_digest(self, path: Path) -> None:
        assert digest_of(path).startswith("sha256:")
