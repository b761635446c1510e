"""Every product with a constant weight, as a Site without a role yet, and why the others are none."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.operand import operand_of
from spq_graph.passes.base.values import FLOATS, Weight, attribute_of, holds_codes, is_product, is_standard, weight_of
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site, Unmatched, expert_of, layer_of
from spq_graph.terms.targets import CONTRIB

_OTHER_LINEAR = frozenset({"FusedMatMul", "Einsum", "Conv", "FusedGemm", "GemmFastGelu"})
QUANTIZED_LINEAR = frozenset(
    {
        "DynamicQuantizeMatMul",
        "GemmFloat8",
        "MatMulBlockQuantizedFp4Weight",
        "MatMulBlockQuantizedFp8Weight",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearMatMul",
    }
)
# Contrib operators that hold their projections themselves: inputs 0, 1 are the hidden states and the packed weight.
_FUSED_LINEAR = frozenset({"Attention", "PackedAttention", "LongformerAttention", "QAttention", "DecoderAttention"})

# Whatever these hold is told operator by operator; ours is read as the product that it stands for.
_KNOWN_DOMAINS = frozenset({CONTRIB, "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.ml", DOMAIN})


def collect_sites(graph: ir.Graph) -> tuple[dict[ir.Node, Site], list[Unmatched]]:
    """Sites by node, in the order of the graph, and the products that are none, with the reason."""
    sites: dict[ir.Node, Site] = {}
    unmatched: list[Unmatched] = []
    for node in graph:
        if is_product(node):
            found = _site_or_reason(node)
            if isinstance(found, Site):
                sites[node] = found
            elif found:
                unmatched.append(Unmatched(node.name or "", found))
        elif _holds_weight(node):
            unmatched.append(Unmatched(node.name or "", _why_untouched(node)))
        unmatched += _inside_subgraphs(node)
    shared = Counter(site.key for site in sites.values())
    for node, site in sites.items():
        if shared[site.key] > 1:  # one module, several products: the node's name tells them apart
            sites[node] = replace(site, key=f"{site.key}/{site.node}")
    return sites, unmatched


def _holds_weight(node: ir.Node) -> bool:
    if not is_standard(node) and node.domain not in _KNOWN_DOMAINS:
        return True
    if node.op_type in _FUSED_LINEAR and not is_standard(node):
        return len(node.inputs) > 1 and weight_of(node.inputs[1]) is not None
    return node.op_type in _OTHER_LINEAR | QUANTIZED_LINEAR and any(weight_of(v) is not None for v in node.inputs[1:])


def _why_untouched(node: ir.Node) -> str:
    if not is_standard(node) and node.domain not in _KNOWN_DOMAINS:
        return f"custom operator {node.domain}::{node.op_type}: nothing is known of what it does; it stays as it is"
    if node.op_type in QUANTIZED_LINEAR:
        return f"its weight is quantized already ({node.op_type}); it stays as it is"
    return f"{node.op_type} is not handled; it stays as it is"


def _inside_subgraphs(node: ir.Node) -> Iterator[Unmatched]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for inner in (inner for graph in graphs for inner in graph.all_nodes() if is_product(inner)):
            name = inner.name or f"{node.name}/{inner.op_type}"
            yield Unmatched(name, f"inside a subgraph of {node.op_type} '{node.name}'")


def _site_or_reason(node: ir.Node) -> Site | str | None:
    """The node's Site, or why it is none; None for a product of two activations."""
    if len(node.inputs) < 2:
        return f"{node.op_type} with fewer than two operands"
    activation, weight = node.inputs[0], weight_of(node.inputs[1])
    constant_first = weight_of(activation) is not None
    if weight is None:
        return "the constant is the first operand: not a linear layer" if constant_first else _no_constant(node)
    if activation is None or constant_first:
        return "both operands are constants"
    reason = _odd_weight(weight) or (_odd_gemm(node) if node.op_type == "Gemm" else None)
    if reason:
        return reason
    rows, columns = weight.shape[::-1] if attribute_of(node, "transB", 0) else weight.shape
    if rows < 2:
        return "an outer product with a vector: not a linear layer"
    key = module_path(node) or node.name or ""
    return Site(
        key=key,
        node=node.name or "",
        role=Role.OTHER,
        layer=layer_of(key),
        input=activation.name or "",
        shape=(rows, columns),
        expert=expert_of(key),
    )


def stored_in(node: ir.Node) -> Precision:
    """The floating-point format of a site's weight or table in the graph; doubles count as single."""
    operand = operand_of(node)
    return _STORED.get(operand.dtype, Precision.FP32) if operand is not None else Precision.FP32


def _no_constant(node: ir.Node) -> str | None:
    """Why a product has no constant weight, although it is a linear layer; None for a product of two activations."""
    value, left = node.inputs[1], 64
    while value is not None and left and (before := value.producer()) is not None and before.op_type in _TO_WEIGHT:
        left -= 1
        if before.op_type == "DequantizeLinear" and weight_of(before.inputs[0]) is not None:
            return "its weight is quantized already (DequantizeLinear); it stays as it is"
        value = before.inputs[0]
    matrix = value is not None and value.shape is not None and len(value.shape) == 2
    if value is not None and matrix and value.is_graph_input() and value is not node.inputs[0]:
        return f"its weight '{value.name}' is an input of the graph, so that nothing is known of it before it runs"
    return _computed(node)


def _computed(node: ir.Node) -> str | None:
    """Why a product has no constant weight, although nothing but constants is behind its second operand."""
    pending, seen = [node.inputs[1]], dict[ir.Node, None]()
    while pending:
        value = pending.pop()
        before = value.producer() if value is not None else None
        if value is not None and before is None and value.const_value is None:
            return None
        if before is not None and before not in seen:
            seen[before] = None
            pending += before.inputs
        if len(seen) > _MOST_BEHIND:
            return None
    widening = [before for before in seen if before.op_type == "Cast" and holds_codes(before.inputs[0])]
    if widening:
        return (
            f"its weight is computed from integers (Cast '{widening[0].name}'), as a quantized one; it stays as it is"
        )
    last = next(iter(seen), None)
    return None if last is None else f"its weight is computed ({last.op_type} '{last.name}'); it stays as it is"


_MOST_BEHIND = 64  # nodes, so that asking takes the same time in every graph
_TO_WEIGHT = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})
_STORED = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}


def _odd_weight(weight: Weight) -> str | None:
    if len(weight.shape) != 2:
        return f"the constant operand has rank {len(weight.shape)}: not a linear layer"
    if weight.dtype not in FLOATS:
        return f"the constant operand holds {weight.dtype.name}: not a floating-point product"
    return None if min(weight.shape) else "the constant operand is empty"


def _odd_gemm(node: ir.Node) -> str | None:
    odd = [name for name in ("alpha", "beta") if attribute_of(node, name, 1.0) != 1.0]
    odd += ["transA"] if attribute_of(node, "transA", 0) else []
    return f"Gemm with unusual {', '.join(odd)}; it stays as it is" if odd else None


def _path_in_name(name: str) -> str | None:
    """The module in a name such as /model/layers.0/mlp/down_proj/MatMul, which may tell behind it what was fused.

    TorchScript exports and onnxruntime-genai's builder name nodes so.
    """
    found = _SCOPED.match(name)
    return found["path"].replace("/", ".") if found else None


_SCOPED = re.compile(r"/(?P<path>\w[\w.-]*(?:/\w[\w.-]*)*?)/(?:MatMul|Gemm|Gather)(?![A-Za-z])")


def module_path(node: ir.Node) -> str | None:
    """The module that a node belongs to, as the exporter recorded it: in the node's metadata, or in its name."""
    recorded = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if not recorded:
        return _path_in_name(node.name or "")
    try:
        scopes = ast.literal_eval(recorded)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    # The last scope is the operation itself, the one before it the module that called it.
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 and scopes[-2] else None
