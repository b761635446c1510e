"""A graph of one node for each kind that a model has, for a runtime to say which of them it does not have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from spq_graph.passes.base.values import is_standard

_LARGEST = 64 << 20  # bytes of a constant that goes along: what is larger leaves its node out
_SMALL = 1 << 16  # of a standard operator, which asks for none of them but shapes and the like


def operators_of(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator a model has, as domain::Operator, or the operator alone of ONNX's own."""
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[label_of(node)] = counts.get(label_of(node), 0) + 1
    return counts


def label_of(node: ir.Node) -> str:
    """An operator as people call it."""
    return node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"


def probe_of(model: ir.Model) -> onnx.ModelProto:
    """One node of each kind, unconnected, each named as `label_of` has it; what a function stands for is left out.

    Nodes with graphs of their own are left out, for what is in those is there itself, and so are nodes that read what
    has no known type. Operators of other domains take their constants along, by which a runtime may judge them.

    Args:
        model: the graph, canonical; nothing of it is changed.
    """
    nodes: list[onnx.NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    constants: list[onnx.TensorProto] = []
    for number, node in enumerate(_kinds(model)):
        proto = ir.to_proto(node)
        assert isinstance(proto, onnx.NodeProto)
        proto.name = label_of(node)
        del proto.input[:], proto.output[:]
        for place, value in enumerate(node.inputs):
            name = "" if value is None else f"i{number}_{place}"
            proto.input.append(name)
            tensor = value.const_value if value is not None and value.producer() is None else None
            if tensor is not None and tensor.nbytes <= (_SMALL if is_standard(node) else _LARGEST):
                constants.append(ir.to_proto(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)))
            elif value is not None:
                inputs.append(_described(name, value))
        proto.output.extend("" if not value.name else f"o{number}_{place}" for place, value in enumerate(node.outputs))
        nodes.append(proto)
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for node in nodes for name in node.output if name]
    graph = onnx.helper.make_graph(nodes, "probe", inputs, outputs, constants)
    imports = {domain or "": version for domain, version in model.graph.opset_imports.items()}
    domains = {node.domain: imports.get(node.domain, 1) for node in nodes}
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in ({"": imports.get("", 1)} | domains).items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def _kinds(model: ir.Model) -> Iterator[ir.Node]:
    """The first node of each operator and types of operands; of other domains of each shape of attributes as well."""
    seen: set[tuple[object, ...]] = set()
    for node in model.graph.all_nodes():
        if node.op_identifier() in model.functions or not node.outputs:
            continue
        attributes = list(node.attributes.values())
        graphs = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or a.is_ref() for a in attributes)
        types = tuple(None if value is None else value.dtype or _stored(value) for value in node.inputs)
        if graphs or any(kind is None and value is not None for kind, value in zip(types, node.inputs, strict=True)):
            continue
        told = () if is_standard(node) else tuple(sorted((a.name, str(a.value)) for a in attributes))
        kind = (node.op_identifier(), types, told)
        if kind not in seen and not any(_too_large(value) for value in node.inputs if not is_standard(node)):
            seen.add(kind)
            yield node


def _stored(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else None


def _too_large(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.nbytes > _LARGEST


def _described(name: str, value: ir.Value) -> onnx.ValueInfoProto:
    dtype = value.dtype or _stored(value)
    assert dtype is not None
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return onnx.helper.make_tensor_value_info(name, int(dtype), shape)
