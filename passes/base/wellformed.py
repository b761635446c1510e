"""Whether every node has what its operator takes, so that no pass has to ask it again.

onnx's own checker wants shapes of inputs that many exporters leave out, weights where they are not mapped, and the
whole graph in one message; what passes rely on are the ends and the attributes of nodes, which its schemas know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import onnx_ir as ir
from onnx import defs

from spq_graph.passes.base.values import is_standard
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import CONTRIB

EXPORT_NEWER = (
    "export the model again with opset 13 or later, as optimum does with `--opset 17` and `spq-graph export` does"
)
_INT, _FLOAT, _STRING = ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING
_MANY = 1 << 31
# Of what ONNX Runtime has beside ONNX, and passes read: fewest and most inputs, and which attributes it must have.
_OF_RUNTIME: Mapping[str, tuple[int, int, tuple[str, ...]]] = {
    "Attention": (2, _MANY, ("num_heads",)),
    "BiasGelu": (2, 2, ()),
    "DequantizeLinear": (2, 3, ()),
    "FastGelu": (1, 2, ()),
    "FusedGemm": (2, 3, ()),
    "FusedMatMul": (2, 2, ()),
    "GatherBlockQuantized": (3, 4, ()),
    "Gelu": (1, 1, ()),
    "GroupQueryAttention": (1, _MANY, ("num_heads", "kv_num_heads")),
    "MatMulNBits": (3, 6, ("K", "N")),
    "MoE": (3, _MANY, ()),
    "MultiHeadAttention": (1, _MANY, ("num_heads",)),
    "PagedAttention": (1, _MANY, ()),
    "QMoE": (3, _MANY, ()),
    "QuantizeLinear": (2, 3, ()),
    "QuickGelu": (1, 1, ()),
    "SimplifiedLayerNormalization": (1, 3, ()),
}
# Theirs by name; any other is not read.
_TYPES: Mapping[str, tuple[ir.AttributeType, ...]] = {
    **dict.fromkeys(
        ("K", "N", "a_type", "accuracy_level", "bits", "block_size", "fast", "kv_num_heads", "num_heads"), (_INT,)
    ),
    **dict.fromkeys(("alpha", "beta"), (_FLOAT,)),
    **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), (_INT,)),
    **dict.fromkeys(("activation", "activation_type"), (_STRING,)),
}
_NO_TYPES = frozenset({ir.DataType.UNDEFINED})


def check_nodes(model: ir.Model, where: str) -> None:
    """Refuse nodes without the inputs, outputs and attributes of their operators, in functions and subgraphs too.

    Args:
        model: is not changed.
        where: the file, for errors.

    Raises:
        GraphError: naming the first such node, and what it lacks.
    """
    for node, opset in _nodes_of(model):
        if (wrong := _wrong_with(node, opset)) is not None:
            what = f"node '{node.name or ''}' ({node.op_type}) {wrong}"
            if is_standard(node) and opset < 13:
                # Of an old one it may be the number that is wrong, and a newer one is what the lift would bring it to.
                raise GraphError(
                    f"{what}; this graph says that it is of opset {opset}", where=where, remedy=EXPORT_NEWER
                )
            raise GraphError(what, where=where, remedy="the graph is invalid; export the model again")


def _nodes_of(model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
    """Every node, with the version of ONNX's operators that it is written in."""
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    opset = defs.onnx_opset_version()
    for graph in holders:  # a function that states none has the graph's
        opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", opset))
        for node in graph.all_nodes():
            yield node, opset


def _wrong_with(node: ir.Node, opset: int) -> str | None:
    for name, attribute in node.attributes.items():
        # Whatever reads and writes graphs fails over it, of an attribute that nobody asked for too.
        if attribute.type is ir.AttributeType.UNDEFINED and not attribute.is_ref():
            return f"has an attribute {name} without a type"
    known = _OF_RUNTIME.get(node.op_type) if node.domain == CONTRIB or node.op_type not in _standard_names() else None
    if known is not None:
        return _wrong_with_theirs(node, *known)
    schema = _schema(node.op_type, "" if is_standard(node) else node.domain, opset)
    if schema is None:
        return None
    wrong = _wrong_inputs(node, schema)
    if wrong is None and not schema.min_output <= len(node.outputs) <= schema.max_output:
        gives = _number(schema.min_output, schema.max_output)
        wrong = f"has {len(node.outputs)} outputs, where the operator gives {gives}"
    return wrong or (_wrong_attributes(node, schema) if is_standard(node) else None)


def _wrong_with_theirs(node: ir.Node, fewest: int, most: int, needed: tuple[str, ...]) -> str | None:
    if not fewest <= len(node.inputs) <= most or node.inputs[0] is None or not node.outputs:
        return f"has {len(node.inputs)} inputs, where the operator takes {_number(fewest, most)}"
    if missing := [name for name in needed if name not in node.attributes]:
        return f"lacks its attribute {missing[0]}"
    for name, attribute in node.attributes.items():
        if name in _TYPES and attribute.type not in _TYPES[name]:
            return f"has an attribute {name} of type {attribute.type.name}"
        if name in ("K", "N") and not 0 < attribute.as_int() < _MANY:
            return f"says that {name} is {attribute.as_int()}"
    return None


def _wrong_inputs(node: ir.Node, schema: defs.OpSchema) -> str | None:
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        takes = _number(schema.min_input, schema.max_input)
        return f"has {len(node.inputs)} inputs, where the operator takes {takes}"
    for place, value in enumerate(node.inputs):
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        if value is None and formal.option != defs.OpSchema.FormalParameterOption.Optional:
            return f"lacks its input {place} ({formal.name})"
    return None


def _wrong_attributes(node: ir.Node, schema: defs.OpSchema) -> str | None:
    for name, known in schema.attributes.items():
        attribute = node.attributes.get(name)
        if attribute is None and known.required:
            return f"lacks its attribute {name}"
        if attribute is not None and int(attribute.type) != _number_of(known.type):
            return f"has an attribute {name} of type {attribute.type.name}"
    return _odd_value(node)


def _odd_value(node: ir.Node) -> str | None:
    """What is wrong with a value that stands for another thing than a number."""
    if node.op_type == "Constant" and len(node.attributes) != 1:
        return f"has {len(node.attributes)} values"
    if node.op_type == "Constant" and not next(iter(node.attributes)).startswith(("value", "sparse_value")):
        return "has no value"
    permutation = node.attributes.get("perm") if node.op_type == "Transpose" else None
    if permutation is not None and not permutation.is_ref():
        axes = list(permutation.as_ints())
        if sorted(axes) != list(range(len(axes))):
            return f"has a permutation {axes[:8]}"
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    if to is not None and not to.is_ref() and to.as_int() not in _types():
        return f"casts to an element type {to.as_int()} that ONNX does not have"
    return None


def _number_of(kind: Any) -> int:
    return int(kind.value)


@cache
def _types() -> frozenset[int]:
    return frozenset(int(kind) for kind in ir.DataType) - {int(kind) for kind in _NO_TYPES}


@cache
def _standard_names() -> frozenset[str]:
    return frozenset(schema.name for schema in defs.get_all_schemas())


@cache
def _schema(op_type: str, domain: str, opset: int) -> defs.OpSchema | None:
    """Of an operator of ONNX; of a custom one by the name of one of its, that one's: passes go by names."""
    newest = defs.onnx_opset_version()
    for where, version in ((domain, min(max(opset, 1), newest)), (domain, newest), ("", newest)):
        if defs.has(op_type, max_inclusive_version=version, domain=where):
            return defs.get_schema(op_type, max_inclusive_version=version, domain=where)
    return None


def _number(fewest: int, most: int) -> str:
    if fewest == most:
        return str(fewest)
    return f"{fewest} or more" if most >= _MANY - 1 else f"{fewest} to {most}"
