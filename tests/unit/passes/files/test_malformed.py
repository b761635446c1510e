"""Files that no exporter wrote: refused by what is wrong with them, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.errors import GraphError, SpqError
from tests.fuzz.mutations import nested
from tests.fuzz.seeds import SEEDS

Edit = Callable[[onnx.ModelProto], None]


def first(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def dims(*sizes: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        first(model).dims[:] = sizes

    return edit


def kind(number: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        first(model).data_type = number

    return edit


def too_few_numbers(model: onnx.ModelProto) -> None:
    first(model).ClearField("raw_data")
    first(model).float_data.extend([1.0, 2.0])


def outside(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = first(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "model.onnx", "offset": "0", "length": "16"} | {key: value}
        for name, text in entries.items():
            tensor.external_data.add(key=name, value=text)

    return edit


def texts_outside(model: onnx.ModelProto) -> None:
    outside("length", "16")(model)
    first(model).data_type = TensorProto.STRING


def recursive(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "Silu", "local"


def foreign(model: onnx.ModelProto) -> None:
    model.functions[0].opset_import[0].version = 11


def reads_nothing(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].input[0] = "nobody"


def empty_branch(model: onnx.ModelProto) -> None:
    del model.graph.node[-1].attribute[0].g.node[:]


@pytest.mark.parametrize(
    ("seed", "edit", "says"),
    [
        ("plain", dims(-1, 32), r"has the shape \[-1, 32\]"),
        ("plain", dims(1 << 62, 0), "has the shape"),
        ("plain", dims(1 << 31, 1 << 31), "where its shape wants"),
        ("plain", kind(TensorProto.UNDEFINED), "has no element type"),
        ("plain", kind(-1), "has no element type|not a valid ONNX file"),
        ("plain", kind(TensorProto.STRING), "holds 0 texts where its shape wants 2048"),
        ("plain", too_few_numbers, "holds 2 numbers where its shape wants 2048"),
        ("plain", outside("offset", "-5"), "place of weight|not a valid ONNX file"),
        ("plain", outside("length", "-5"), "place of weight|not a valid ONNX file"),
        ("plain", outside("location", "a\0b"), "place of weight"),
        ("plain", outside("offset", "9" * 30), "cut short|holds"),
        ("plain", outside("offset", "x"), "not a valid ONNX file"),
        ("plain", texts_outside, "has texts in another file|not a valid ONNX file"),
        ("functions", recursive, "Cyclic dependency"),
        ("functions", foreign, "Opset mismatch"),
        ("functions", reads_nothing, "reads 'nobody', which nothing produces"),
        ("branches", empty_branch, "nothing produces the output"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, seed: str, edit: Edit, says: str) -> None:
    model = SEEDS[seed]()
    edit(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SpqError, match=says) as caught:
        canonical(tmp_path / "model.onnx")
    assert caught.value.remedy


@pytest.mark.parametrize("old", [b"layers.0.mlp.silu", b"Sigmoid", b"attention_mask"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, old: bytes) -> None:
    """Of a node, an operator and an input: the parser hands them on as bytes."""
    content = SEEDS["plain"]().SerializeToString()
    assert old in content
    (tmp_path / "model.onnx").write_bytes(content.replace(old, b"\xff\xfe" + old[2:]))
    with pytest.raises(SpqError, match="a name in the graph is not UTF-8"):
        load_graph(tmp_path / "model.onnx")


def test_a_message_as_deep_as_no_parser_goes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(nested(5000))
    with pytest.raises(SpqError, match="not a valid ONNX file"):
        load_graph(tmp_path / "model.onnx")


def test_a_constant_that_would_be_enormous_is_not_computed(tmp_path: Path) -> None:
    """A number expanded to terabytes; one that is doubled forty times is no larger than it was."""
    model = SEEDS["computed"]()
    for tensor in model.graph.initializer:
        if tensor.name == "k_proj.more":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1 << 20, 1, 32, 32]), tensor.name))
    query = next(node for node in model.graph.node if node.name.endswith("q_proj"))
    value = query.input[1]
    for step in range(40):
        model.graph.node.append(helper.make_node("Add", [value, value], [f"twice.{step}"], name=f"twice.{step}"))
        value = f"twice.{step}"
    query.input[1] = value
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graph = canonical(tmp_path / "model.onnx").graph
    names = {node.name for node in graph}
    assert "k_proj.made" in names
    assert "twice.39" not in names


def test_a_constant_that_cannot_be_computed_stays_as_it_is(tmp_path: Path) -> None:
    model = SEEDS["computed"]()
    for tensor in model.graph.initializer:
        if tensor.name == "q_proj.more":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((3, 3), np.float32), tensor.name))  # fits no [32, 32]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert "q_proj.made" in {node.name for node in canonical(tmp_path / "model.onnx").graph}


def test_functions_that_are_sound_are_written_out(tmp_path: Path) -> None:
    onnx.save(SEEDS["functions"](), tmp_path / "model.onnx")
    assert "Silu" not in {node.op_type for node in canonical(tmp_path / "model.onnx").graph}


def test_functions_that_nobody_calls_are_dropped(tmp_path: Path) -> None:
    model = SEEDS["functions"]()
    unused = helper.make_function("local", "Unused", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [])
    unused.opset_import.extend([helper.make_opsetid("", 21)])
    model.functions.append(unused)
    onnx.save(model, tmp_path / "model.onnx")
    assert not canonical(tmp_path / "model.onnx").functions


def test_a_graph_error_of_a_function_is_no_check_that_did_not_hold(tmp_path: Path) -> None:
    """Exit status 1, not 3 with "please report this"."""
    model = SEEDS["functions"]()
    recursive(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GraphError):
        canonical(tmp_path / "model.onnx")


def test_a_large_table_of_texts_is_no_weight_to_hold(tmp_path: Path) -> None:
    """Texts have no size of an element, which whoever cuts a graph into pieces asks for."""
    from spq_graph.passes.pieces.split import split

    model = SEEDS["plain"]()
    table = helper.make_tensor("texts", TensorProto.STRING, [4000], [b"word " * 4] * 4000)
    model.graph.initializer.append(table)
    model.graph.node.insert(0, helper.make_node("Identity", ["texts"], ["more"], name="texts"))
    onnx.save(model, tmp_path / "model.onnx")
    graph = canonical(tmp_path / "model.onnx")
    assert split(graph, tmp_path / "model.onnx", None).segments
