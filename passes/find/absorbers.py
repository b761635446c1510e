"""Which tensors can take a factor for each channel of an activation, and why others cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.documents.changes import MOST_EXPONENT
from spq_graph.passes.base.operand import operand_of
from spq_graph.passes.base.values import SEEN_THROUGH, is_standard, users_of, weight_of
from spq_graph.passes.find.mixed import Mixed, mixed_by
from spq_graph.terms.absorber import Absorber, Heads, Place, Unabsorbed
from spq_graph.terms.site import Site
from spq_graph.terms.targets import CONTRIB

# bfloat16 has the exponents of float32.
_EXACT = frozenset({ir.DataType.FLOAT, ir.DataType.BFLOAT16})
# So far from the ends of float32 that factors along both axes of a weight lead to neither.
_LEAST, _MOST = 2.0 ** (-126 + 2 * MOST_EXPONENT), 2.0 ** (127 - 2 * MOST_EXPONENT)
# Norms as one operator, by the place of the weight that multiplies what they give first. A LayerNormalization adds a
# bias behind its weight, which would have to take the factors as well.
_NORMS = {"RMSNormalization": 1, "SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2}


@dataclass(frozen=True, slots=True)
class _Taker:
    """What takes the factors of an activation.

    Attributes:
        place: where it stands.
        tensor: what makes the activation channel by channel.
        axis: of it, along which the channels lie.
        by: the nodes that may read what takes factors.
        bias: what is added to what the tensor makes, by channel; None for nothing.
        heads: of query and values, behind attention.
    """

    place: Place
    tensor: ir.Value
    axis: int
    by: Collection[ir.Node]
    bias: ir.Value | None = None
    heads: Heads | None = None


def find_absorbers(graph: ir.Graph, sites: Iterable[Site]) -> tuple[list[Absorber], list[Unabsorbed]]:
    """For every activation that sites read, in their order, what takes factors of its channels, or why nothing does.

    Factors are exact where they are powers of two and nothing leaves the normal numbers of float32: half precision is
    refused.

    Args:
        graph: canonical.
        sites: products of the graph; one that it does not have is left out.
    """
    nodes = {node.name or "": node for node in graph}
    products = {site: nodes[site.node] for site in sites if site.node in nodes}
    reading: dict[ir.Value, list[Site]] = {}
    for site, node in products.items():
        if node.inputs and node.inputs[0] is not None:
            reading.setdefault(node.inputs[0], []).append(site)
    absorbers: list[Absorber] = []
    others: list[Unabsorbed] = []
    for value, readers in reading.items():
        name, keys = value.name or "", tuple(site.key for site in readers)
        found = _takes(value, {products[site] for site in readers}, set(products.values()))
        if isinstance(found, str):
            others.append(Unabsorbed(name, keys, found))
        else:
            bias = found.bias.name if found.bias is not None else None
            made = Absorber(name, found.place, found.tensor.name or "", found.axis, keys, bias, found.heads)
            absorbers.append(made)
    return absorbers, others


def _takes(value: ir.Value, readers: Collection[ir.Node], products: Collection[ir.Node]) -> _Taker | str:
    """What takes the factors of an activation; or why nothing does, in words.

    Args:
        value: the activation.
        readers: products that read it.
        products: all of the graph.
    """
    node = value.producer()
    if node is None:
        return "it is an input of the graph"
    if value.is_graph_output() or (other := _another(value, readers)) is not None:
        return f"{'an output of the graph' if value.is_graph_output() else other} reads it as well"
    channels = 0
    for product in readers:
        operand = operand_of(product)
        if operand is None or operand.dtype is not ir.DataType.FLOAT:
            return f"{product.name} is no product in float32, where factors are exact"
        if (text := _not_free(operand.weight.initializer, readers)) is not None:
            return text
        channels = operand.shape[0]
    up = _up_of(node, products)
    found = _glu(node, up) if up is not None else _value(value, products, channels) or _norm(value, node, channels)
    if isinstance(found, str):
        return found
    taking = [found.tensor, *([found.bias] if found.bias is not None else [])]
    return next((why for tensor in taking if (why := _not_free(tensor, found.by)) is not None), found)


def _up_of(node: ir.Node, products: Collection[ir.Node]) -> ir.Node | None:
    """The product whose result a Mul multiplies as it is: the up projection of a GLU, whose gate is activated."""
    if node.op_type != "Mul" or not is_standard(node):
        return None
    makers = [value.producer() if value is not None else None for value in node.inputs]
    return next((maker for maker in makers if maker is not None and maker in products), None)


def _value(value: ir.Value, products: Collection[ir.Node], channels: int) -> _Taker | str | None:
    """The weight of a value projection, whose channels are those of what attention gives; None where nothing mixes."""
    found = mixed_by(value, products)
    if not isinstance(found, Mixed):
        return found
    operand, (query, shared) = operand_of(found.product), found.heads
    if operand is None or operand.shape[1] // shared * query != channels:
        return f"{found.product.name} does not make as many channels for each head as are read"
    return _Taker(
        Place.VALUE,
        operand.weight.initializer,
        operand.axes[1],
        {found.product, found.adding},
        bias=found.bias,
        heads=found.heads,
    )


def _norm(value: ir.Value, node: ir.Node, channels: int) -> _Taker | str:
    """The weight of a norm, or of whatever multiplies by a constant for each channel."""
    at = _NORMS.get(node.op_type) if is_standard(node) or node.domain == CONTRIB else None
    if at is not None and value is node.outputs[0]:
        candidates = list(node.inputs[at : at + 1])
    elif node.op_type == "Mul" and is_standard(node):
        candidates = list(node.inputs)
    else:
        return f"{node.op_type} {node.name} gives it, which has no weight for each channel"
    for candidate in candidates:
        weight = weight_of(candidate)
        if weight is None or weight.through or not weight.shape:
            continue
        if weight.tensor.size == weight.shape[-1] == channels:
            return _Taker(Place.NORM, weight.initializer, len(weight.shape) - 1, {node})
    return f"{node.op_type} {node.name} gives it, which has no weight for each channel"


def _glu(node: ir.Node, up: ir.Node) -> _Taker | str:
    """The weight of an up projection, whose output channels are those of the GLU's product."""
    result, operand = up.outputs[0], operand_of(up)
    if operand is None or len(up.inputs) > 2:
        return f"{up.name} adds a bias to it"
    if (other := _another(result, {node})) is not None or result.is_graph_output():
        return f"{other or 'an output of the graph'} reads the result of {up.name} as well"
    return _Taker(Place.GLU, operand.weight.initializer, operand.axes[1], {up})


def _another(value: ir.Value, readers: Collection[ir.Node]) -> str | None:
    """The first node but these that reads a value, by name."""
    return next((node.name or node.op_type for node in users_of(value) if node not in readers), None)


def _not_free(tensor: ir.Value, readers: Collection[ir.Node]) -> str | None:
    """Why a constant cannot be scaled for these readers alone, in words; None where it can."""
    name, held = tensor.name, tensor.const_value
    if held is None or held.dtype not in _EXACT:
        return f"{name} is in {'no constant' if held is None else held.dtype.name.lower()}, where factors are not exact"
    pending = [tensor]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return f"{name} is an output of the graph"
        for node in users_of(value):
            if node in readers:
                continue
            if node.op_type not in SEEN_THROUGH or not is_standard(node):
                return f"{node.name} reads {name} as well"
            pending += node.outputs
    return None


def largest_rows(graph: ir.Graph, absorber: Absorber, sites: Iterable[Site]) -> npt.NDArray[np.float32] | None:
    """Largest |weight| by channel of an activation over all weights that read it, float32 [K]; all are read for it.

    None where one of them, or what takes the factors, holds a number so near to the ends of float32 that the factors
    of both its axes could round it.

    Args:
        graph: canonical.
        absorber: what takes the factors.
        sites: those that read the activation.
    """
    names = {site.node for site in sites}
    operands = [operand for node in graph if node.name in names and (operand := operand_of(node)) is not None]
    taking = [graph.initializers[name].const_value for name in (absorber.tensor, absorber.bias) if name is not None]
    if any(held is None or not _far_from_ends(np.asarray(held.numpy())) for held in taking):
        return None
    largest = np.zeros(operands[0].shape[0], dtype=np.float32)
    for operand in operands:
        for rows, block in operand.blocks():
            if not _far_from_ends(block):
                return None
            largest[rows] = np.maximum(largest[rows], np.abs(block).max(axis=1))
    return largest


def _far_from_ends(array: npt.NDArray[Any]) -> bool:
    sizes = np.abs(array.astype(np.float32, copy=False))
    smallest, largest = sizes.min(where=sizes > 0, initial=np.inf), sizes.max(initial=0.0)
    return bool(smallest >= _LEAST and largest <= _MOST)
