"""Reading graphs: what is broken is refused by name, and what is odd becomes what the passes expect."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from spq_graph.passes.base.values import weight_of
from spq_graph.passes.files.read import digest_of, files_of, load_graph
from spq_graph.passes.find.quantized import refuse_quantized
from spq_graph.terms.errors import GraphError, SourceError
from tests.support.graphs import Glu, glu_model
from tests.support.written import canonical, parse


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


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


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
