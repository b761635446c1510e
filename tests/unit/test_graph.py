"""Reading graphs: what is broken is refused by name, and what is odd becomes what the passes expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from spq_graph.errors import GraphError, SourceError
from spq_graph.passes.graph import Canonicalize, digest_of, files_of, load_graph, name_nodes, strip_exporter_noise
from spq_graph.passes.identify import identify
from spq_graph.passes.quantized import refuse_quantized
from spq_graph.passes.values import weight_of
from tests.graphs import Glu, glu_model, weights_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """One GLU block with its weights inside."""
    path = tmp_path / "model.onnx"
    onnx.save(glu_model(Glu()), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """One GLU block with its weights beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(glu_model(Glu(width=16)), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def parse(text: str, *, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["":{opset}]> {text}')


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def canonical(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return graph


class TestBrokenFiles:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such file"):
            load_graph(tmp_path / "absent.onnx")
        with pytest.raises(SourceError, match="no such file"):
            load_graph(tmp_path)

    def test_zero_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        with pytest.raises(SourceError, match="the file is empty"):
            load_graph(tmp_path / "m.onnx")

    @pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.textproto", "m.onnxtxt"])
    @pytest.mark.filterwarnings("ignore:The onnxtxt format")
    def test_text(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
        with pytest.raises(SourceError, match="not a valid ONNX file"):
            load_graph(tmp_path / name)

    def test_every_way_to_cut_it_short(self, saved: Path) -> None:
        whole = saved.read_bytes()
        for length in range(1, len(whole), 97):
            saved.write_bytes(whole[:length])
            with pytest.raises((SourceError, GraphError)) as caught:
                load_graph(saved)
            assert str(saved) in str(caught.value)

    def test_weight_of_the_wrong_size(self, tmp_path: Path) -> None:
        model = glu_model(Glu())
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
        with pytest.raises(SourceError, match="holds 380 bytes where its shape wants 384"):
            load_graph(write(tmp_path, model))

    def test_value_made_twice(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x) => (float[2] y) { a = Neg(x) a = Relu(x) y = Relu(a) }")
        with pytest.raises(GraphError, match="two nodes of the graph give 'a'"):
            load_graph(write(tmp_path, model))

    def test_input_named_twice(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }")
        model.graph.input[1].name = "x"
        model.graph.node[0].input[1] = "x"
        with pytest.raises(GraphError, match="2 inputs have the name 'x'"):
            load_graph(write(tmp_path, model))


class TestExternalData:
    def test_read_in_place(self, external: Path) -> None:
        model = load_graph(external)
        assert all(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
        assert [p.name for p in files_of(external)] == ["model.onnx", "weights.bin"]

    def test_digest_covers_it(self, external: Path) -> None:
        before = digest_of(external)
        data = bytearray((external.parent / "weights.bin").read_bytes())
        data[0] ^= 1
        (external.parent / "weights.bin").write_bytes(data)
        assert digest_of(external) != before

    def test_missing(self, external: Path) -> None:
        (external.parent / "weights.bin").unlink()
        with pytest.raises(SourceError, match=r"'weights.bin' is missing \(weight 'c1'\)"):
            load_graph(external)

    def test_cut_short(self, external: Path) -> None:
        data = external.parent / "weights.bin"
        data.write_bytes(data.read_bytes()[:-1])
        with pytest.raises(SourceError, match=r"'weights.bin' is cut short"):
            load_graph(external)

    def test_understated_length(self, external: Path) -> None:
        model = onnx.load(external, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = "4" if entry.key == "length" else entry.value
        external.write_bytes(model.SerializeToString())
        (external.parent / "weights.bin").write_bytes(b"1234")
        with pytest.raises(SourceError, match="cut short"):
            load_graph(external)

    @pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
    def test_outside_of_the_folder(self, external: Path, location: str) -> None:
        (external.parent.parent / "weights.bin").write_bytes(bytes(100_000))
        model = onnx.load(external, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        external.write_bytes(model.SerializeToString())
        with pytest.raises(SourceError, match="outside of the model's folder"):
            load_graph(external)

    def test_of_a_constant_node(self, external: Path) -> None:
        model = onnx.load(external, load_external_data=False)
        tensor = model.graph.initializer.pop(0)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        external.write_bytes(model.SerializeToString())
        (external.parent / "weights.bin").unlink()
        with pytest.raises(SourceError, match="missing"):
            load_graph(external)


class TestBrokenGraphs:
    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match="the graph is empty"):
            load_graph(write(tmp_path, parse("g (float[2] x) => (float[2] x) {}")))

    def test_dangling_input(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x) => (float[2] y) { y = Add(x, ghost) }")
        model.graph.node[0].name = "sum"
        with pytest.raises(GraphError, match="node 'sum' reads 'ghost', which nothing produces"):
            load_graph(write(tmp_path, model))

    def test_dangling_input_in_a_subgraph(self, tmp_path: Path) -> None:
        then = helper.make_graph([helper.make_node("Neg", ["ghost"], ["t"])], "then", [], [_value("t")])
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [_value("e")])
        node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
        graph = helper.make_graph(
            [node], "g", [_value("x"), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])], [_value("y")]
        )
        with pytest.raises(GraphError, match="'ghost', which nothing produces"):
            load_graph(write(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])))

    @pytest.mark.filterwarnings("ignore")
    def test_dangling_output(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match="nothing produces the output 'y'"):
            load_graph(write(tmp_path, parse("g (float[2] x) => (float[2] y) { z = Neg(x) }")))

    def test_cycle(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Relu(b) }")
        with pytest.raises(GraphError, match="cycle"):
            load_graph(write(tmp_path, model))

    def test_unsorted_is_sorted(self, tmp_path: Path) -> None:
        model = parse("g (float[2] x) => (float[2] y) { y = Relu(a) a = Neg(x) }")
        assert [node.op_type for node in load_graph(write(tmp_path, model)).graph] == ["Neg", "Relu"]

    def test_quantized_already(self, tmp_path: Path) -> None:
        model = parse("""g (float[2] x) => (float[2] y) <float s = {0.1}, uint8 z = {3}>
            { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""")
        path = write(tmp_path, model)
        with pytest.raises(GraphError, match=r"quantized already \(1 DequantizeLinear, 1 QuantizeLinear\)"):
            refuse_quantized(load_graph(path), path)

    def test_not_quantized(self, saved: Path) -> None:
        refuse_quantized(load_graph(saved), saved)


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


class TestWeights:
    def test_rounded_where_a_cast_rounds(self) -> None:
        model = parse("""g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1.0001, 2.0, 3.0, 4.0}>
            { h = Cast <to = 10> (w) f = Cast <to = 1> (h) t = Transpose(f) y = MatMul(x, t) }""")
        node = next(n for n in canonical(model).graph if n.op_type == "MatMul")
        weight = weight_of(node.inputs[1])
        assert weight is not None
        assert weight.dtype is ir.DataType.FLOAT
        assert weight.numpy().tolist() == [[1.0, 3.0], [2.0, 4.0]]

    def test_permutation_of_more_than_two_axes_is_not_seen_through(self) -> None:
        model = parse("""g (float[2, 1] x) => (float[1, 2, 1] y) <float[1, 1, 1] w = {1}>
            { t = Transpose <perm = [0, 2, 1]> (w) y = MatMul(x, t) }""")
        node = next(n for n in canonical(model).graph if n.op_type == "MatMul")
        assert weight_of(node.inputs[1]) is None


def _value(name: str, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape or [2])
