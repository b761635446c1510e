"""The form that the passes expect, whatever a graph looked like."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from spq_graph.passes.canon.canonicalize import name_nodes, strip_exporter_noise
from spq_graph.passes.find.identify import identify
from tests.support.graphs import Builder, Glu, glu_model, weights_of
from tests.support.written import canonical
from tests.unit.passes.files.test_read import _value


class TestCanonicalize:
    def test_names_are_unique_and_the_first_keeps_its_own(self) -> None:
        nodes = [
            ir.Node("", op, [], name=name)
            for op, name in (
                ("MatMul", None),
                ("Add", "a"),
                ("Add", "a"),
                ("MatMul", "MatMul_0"),
                ("Neg", ""),
                ("Add", "a_1"),
            )
        ]
        assert name_nodes(nodes)
        assert [node.name for node in nodes] == ["MatMul_0_1", "a", "a_2", "MatMul_0", "Neg_4", "a_1"]
        assert not name_nodes(nodes)

    @pytest.mark.parametrize("value", ["x", "y", "weight"])
    def test_what_a_node_is_called_nothing_else_is(self, value: str) -> None:
        """An input, a result of another, a constant: OpenVINO lists all of them by name, and calls one otherwise."""
        b = Builder()
        weight = helper.make_tensor("weight", 1, [4, 4], np.eye(4, dtype=np.float32).tobytes(), raw=True)
        b.op("Neg", b.op("MatMul", "x", "weight", name=value), outputs=["y"], name="y")
        model = b.model({"x": (1, [2, 4])}, {"y": (1, [2, 4])})
        model.graph.initializer.append(weight)
        nodes = list(canonical(model).graph)
        assert [node.name for node in nodes] == [f"{value}_1", "y"]

    def test_duplicate_node_names(self) -> None:
        model = glu_model(Glu(), Glu())
        for node in model.graph.node:
            node.name = "same"
        found = identify(canonical(model))
        assert len(found.blocks) == 2
        assert len({site.key for site in found.sites}) == len(found.sites) == 6

    def test_constants_become_initializers(self) -> None:
        found = identify(canonical(glu_model(Glu(form="transpose"), constants_as_nodes=True)))
        assert [site.shape for site in found.sites] == [(8, 12), (8, 12), (12, 8)]

    def test_initializers_among_the_inputs(self) -> None:
        model = glu_model(Glu(), opset=13)
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph = canonical(model)
        onnx.checker.check_model(ir.to_proto(graph))
        assert [value.name for value in graph.graph.inputs] == ["x"]
        assert len(identify(graph).blocks) == 1

    def test_long_name_of_the_domain(self) -> None:
        model = glu_model(Glu())
        model.opset_import[0].domain = "ai.onnx"
        for node in model.graph.node:
            node.domain = "ai.onnx"
        graph = canonical(model)
        assert graph.graph.opset_imports[""] == 21
        assert {node.domain for node in graph.graph} == {""}
        assert len(identify(graph).blocks) == 1

    def test_functions_are_inlined(self) -> None:
        silu = helper.make_function(
            "local",
            "Silu",
            ["g"],
            ["out"],
            [helper.make_node("Sigmoid", ["g"], ["s"]), helper.make_node("Mul", ["g", "s"], ["out"])],
            [helper.make_opsetid("", 21)],
        )
        block = helper.make_function(
            "local",
            "Mlp",
            ["x", "wg", "wu", "wd"],
            ["y"],
            [
                helper.make_node("MatMul", ["x", "wg"], ["g"]),
                helper.make_node("MatMul", ["x", "wu"], ["u"]),
                helper.make_node("Silu", ["g"], ["a"], domain="local"),
                helper.make_node("Mul", ["a", "u"], ["h"]),
                helper.make_node("MatMul", ["h", "wd"], ["y"]),
            ],
            [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
        )
        weights = [numpy_helper.from_array(np.ones((4, 4), np.float32), name) for name in ("a", "b", "c")]
        calls = [
            helper.make_node("Mlp", ["x", "a", "b", "c"], ["m"], domain="local"),
            helper.make_node("Mlp", ["m", "a", "b", "c"], ["y"], domain="local"),
        ]
        graph = helper.make_graph(calls, "g", [_value("x", [2, 4])], [_value("y", [2, 4])], weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
        model = canonical(helper.make_model(graph, functions=[silu, block], opset_imports=opsets))
        found = identify(model)
        assert len(found.blocks) == 2
        assert weights_of(found, model) == {"a", "b", "c"}

    def test_local_paths_are_dropped(self) -> None:
        model = canonical(glu_model(Glu(), naming="dynamo"))
        node = next(iter(model.graph))
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File '/home/someone/model.py'"
        strip_exporter_noise(model)
        assert list(node.metadata_props) == ["pkg.torch.onnx.name_scopes"]
