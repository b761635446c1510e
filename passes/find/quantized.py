"""Graphs that somebody has quantized in part: what is left to quantize, and what stays because it is already."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED, PREFIX
from spq_graph.passes.base.operand import operand_of
from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import FLOATS, is_product, weight_of
from spq_graph.passes.find.collect import QUANTIZED_LINEAR
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.passes.find.unquantize import LookThroughQuantization
from spq_graph.terms.errors import GraphError
from spq_graph.terms.kernels import GATHERS, OPERATORS
from spq_graph.terms.site import Unmatched

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_NO_PRODUCTS = _QUANTIZERS | GATHERS | {"GatherBlockQuantized", "ConvInteger", "QLinearConv", "QMoE"}
# What only shows in a graph that somebody has quantized already.
QUANTIZED_OPS = QUANTIZED_LINEAR | _NO_PRODUCTS | OPERATORS


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Refuse a graph that is quantized already: one of ours, or one with as many quantized products as others.

    A graph where fewer products are quantized (an int4 head, a quantized embedding) is taken: they stay as they are.

    Raises:
        GraphError: naming what was found.
    """
    found = Counter(node.op_type for node in model.graph.all_nodes() if node.op_type in QUANTIZED_OPS)
    if not found:
        return
    ours = any(ADDED in node.metadata_props or f"{PREFIX}site" in node.metadata_props for node in model.graph)
    quantized = sum(multiplies_codes(node) for node in model.graph)
    floating = sum(is_product(node) and _weight_type(node) in FLOATS for node in model.graph)
    if ours or quantized >= floating:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        raise GraphError(
            f"this graph is quantized already ({what})",
            where=str(path),
            remedy="start from the floating-point model; `spq-graph inspect` shows what is in this one",
        )


def identify_floating(model: ir.Model) -> Identified:
    """Find the sites of a graph that may be quantized in part.

    Roles and layers are those of the whole model; what is quantized already is no site, but listed with the reason.
    """
    if not any(node.op_type in QUANTIZED_OPS for node in model.graph):
        return identify(model)
    seen_through = model.clone()
    run(seen_through, [LookThroughQuantization()])
    found = identify(seen_through)
    nodes = {node.name: node for node in model.graph}
    sites = []
    for site in found.sites:
        node = nodes[site.node]
        if is_product(node) and _weight_type(node) in FLOATS and node.inputs[0] is not None:
            sites.append(replace(site, input=node.inputs[0].name or ""))
        else:
            where = f" of layer {site.layer}" if site.layer is not None else ""
            found.unmatched.append(Unmatched(site.node, f"{site.role.value}{where}: {why_left(node)}"))
    # What stood in for codes in the copy is no table here.
    found.tables = [site for site in found.tables if operand_of(nodes[site.node]) is not None]
    found.sites, found.stored = sites, {site.key: found.stored[site.key] for site in [*found.tables, *sites]}
    found.held = {key: held for key, held in found.held.items() if key in found.stored}
    listed = {entry.node for entry in found.unmatched}
    found.unmatched += [
        Unmatched(node.name or "", why_left(node))
        for node in model.graph
        if _holds_table(node) and (node.name or "") not in listed
    ]
    found.unmatched.sort(key=lambda u: (u.node, u.reason))
    return found


def multiplies_codes(node: ir.Node) -> bool:
    """Whether a node multiplies by a weight that is quantized already."""
    if is_product(node):
        held = _weight_type(node)
        return (held is not None and held not in FLOATS) or _dequantized(node)
    return node.op_type in QUANTIZED_OPS - _NO_PRODUCTS


def why_left(node: ir.Node) -> str:
    """What a node's quantized weight is, and that it stays."""
    bits = node.attributes.get("bits")
    how = "DequantizeLinear" if is_product(node) or node.op_type == "Gather" else node.op_type
    width = f", {int(bits.value)} bits" if bits is not None else ""
    what = "table" if "Gather" in node.op_type else "weight"
    return f"its {what} is quantized already ({how}{width}); it stays as it is"


def _dequantized(node: ir.Node) -> bool:
    back = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return back is not None and back.op_type == "DequantizeLinear" and weight_of(back.inputs[0]) is not None


def _holds_table(node: ir.Node) -> bool:
    """Whether a node looks up rows of a quantized table, or is another quantized operator with constants of its own."""
    if node.op_type == "Gather":
        back = node.inputs[0].producer() if node.inputs[0] is not None else None
        return back is not None and back.op_type == "DequantizeLinear"
    return node.op_type in QUANTIZED_OPS - _QUANTIZERS


def _weight_type(node: ir.Node) -> ir.DataType | None:
    weight = weight_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return weight.dtype if weight is not None else None
