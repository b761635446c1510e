"""Whatever is changed at a lookup after it was written is found, in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.apply import apply_plan, check_applied
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.tables import Ends, plan_of

ENDS = Ends(channels=50, lookups=2)  # with a Slice behind it
Change = Callable[[onnx.GraphProto], None]


def node_of(graph: onnx.GraphProto, op_type: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == op_type][number]


def behind(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto:
    return next(other for other in graph.node if node.output[0] in other.input)


def constant(graph: onnx.GraphProto, ending: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name.endswith(ending))


def edit(ending: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def edited(graph: onnx.GraphProto) -> None:
        tensor = constant(graph, ending)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))

    return edited


def another_code(array: np.ndarray) -> np.ndarray:
    array[7, 0, 3] ^= 16
    return array


def padding(array: np.ndarray) -> np.ndarray:
    array[7, 1, -1] = 5
    return array


def another_scale(array: np.ndarray) -> np.ndarray:
    array[9] *= 2
    return array


def other_ids(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type in ("Gather", "GatherBlockQuantized")]
    lookup = next(node for node in lookups if node.input[1] == "input_ids")
    lookup.input[1] = next(node.input[1] for node in lookups if node.input[1] != "input_ids")


def other_shape(graph: onnx.GraphProto) -> None:
    first = next(n for n in graph.node if n.op_type in ("Gather", "GatherBlockQuantized") and "codes" in n.input[0])
    node = first
    while node.op_type != "Slice":
        node = behind(graph, node)
    graph.initializer.append(numpy_helper.from_array(np.array([49], dtype=np.int64), "other.end"))
    node.input[2] = "other.end"


def unmarked(graph: onnx.GraphProto) -> None:
    del node_of(graph, "Slice").metadata_props[:]


def one_more(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "Slice")
    index = list(graph.node).index(node)
    inner = helper.make_node("Neg", [f"{node.output[0]}.before"], [node.output[0]], name="sign")
    inner.metadata_props.extend(node.metadata_props)
    node.output[0] = f"{node.output[0]}.before"
    graph.node.insert(index + 1, inner)


def attribute(graph: onnx.GraphProto) -> None:
    node_of(graph, "GatherBlockQuantized").attribute[0].i += 16


def table_again(graph: onnx.GraphProto) -> None:
    codes = constant(graph, ".codes")
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(codes), "again"))
    node = next(n for n in graph.node if codes.name in n.input)
    node.input[list(node.input).index(codes.name)] = "again"
    graph.initializer[-1].raw_data = bytes(len(graph.initializer[-1].raw_data))


def no_centre(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.float32(127), "other.centre"))
    node_of(graph, "Sub").input[1] = "other.centre"


def scales_of_other_ids(graph: onnx.GraphProto) -> None:
    rows = [node for node in graph.node if node.op_type == "Gather" and "codes" not in node.input[0]]
    rows[0].input[1], rows[1].input[1] = rows[1].input[1], rows[0].input[1]


BOTH: dict[str, Change] = {
    "a code": edit(".codes", another_code),
    "what fills up a block": edit(".codes", padding),
    "a scale": edit(".scale", another_scale),
    "the ids": other_ids,
    "what is cut off": other_shape,
    "a mark": unmarked,
    "a node behind it": one_more,
    "the table": table_again,
}


def panel_code(array: np.ndarray) -> np.ndarray:
    array[0, 0, 7] ^= 16
    return array


def another_width(graph: onnx.GraphProto) -> None:
    node_of(graph, "Int8Gather").attribute[1].i -= 1


def behind_panels(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "Int8Gather")
    node.output[0] += ".before"
    name = node.output[0].removesuffix(".before")
    graph.node.insert(list(graph.node).index(node) + 1, helper.make_node("Neg", [node.output[0]], [name], name="sign"))


def own_panels(graph: onnx.GraphProto) -> None:
    panels = constant(graph, ".panels")
    graph.initializer.append(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(panels)), "again"))
    node_of(graph, "Int8Gather").input[0] = "again"


def other_ids_of_panels(graph: onnx.GraphProto) -> None:
    first, second = node_of(graph, "Int8Gather"), node_of(graph, "Int8Gather", 1)
    second.input[1] = first.input[1]


CHANGES = {
    ("panels", "a code"): edit(".panels", panel_code),
    ("panels", "a scale"): edit(".scale", another_scale),
    ("panels", "an attribute"): another_width,
    ("panels", "a node behind it"): behind_panels,
    ("panels", "the table"): own_panels,
    ("panels", "the ids"): other_ids_of_panels,
    **{("cpu", name): change for name, change in BOTH.items()},
    **{("portable", name): change for name, change in BOTH.items()},
    ("cpu", "an attribute"): attribute,
    ("portable", "the code of zero"): no_centre,
    ("portable", "whose scales are read"): scales_of_other_ids,
}


def plan_for(source: Path, target: str) -> Plan:
    """A plan for a target; panels are what a tied head by token is stored in."""
    head = {Role.LM_HEAD: Precision.W8A8_TOKEN} if target == "panels" else {}
    return plan_of(source, {Role.EMBEDDING: Precision.W8A16, **head}, target="cpu" if target == "panels" else target)


def written(folder: Path, target: str) -> tuple[Path, Path]:
    source = ENDS.write(folder / "model.onnx")
    path = folder / "made.onnx"
    save_model(apply_plan(source, plan_for(source, target)), path)
    return source, path


def check(source: Path, path: Path, target: str) -> None:
    check_applied(load_graph(path), prepared(source), plan_for(source, target))


@pytest.mark.parametrize(("target", "name"), CHANGES)
def test_a_change_is_found(tmp_path: Path, target: str, name: str) -> None:
    source, path = written(tmp_path, target)
    check(source, path, target)
    model = onnx.load(path)
    CHANGES[target, name](model.graph)
    onnx.save(model, path)
    with pytest.raises(CheckError, match="the graph is not what the plan says"):
        check(source, path, target)
