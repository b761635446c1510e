"""Whether the numbers that a graph holds are numbers: weights with NaN or infinity are told before anything is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.values import FLOATS, weight_of
from spq_graph.passes.find.flow import Harm, harms
from spq_graph.terms.errors import GraphError
from spq_graph.terms.site import Site

_AT_ONCE = 4 << 20  # elements
# The bits of the exponent, all of which are set where a number is NaN or infinite.
_EXPONENTS: Mapping[ir.DataType, int] = {
    ir.DataType.FLOAT: 0x7F80_0000,
    ir.DataType.FLOAT16: 0x7C00,
    ir.DataType.BFLOAT16: 0x7F80,
    ir.DataType.DOUBLE: 0x7FF0_0000_0000_0000,
}


def refuse_broken_weights(model: ir.Model, sites: Sequence[Site], where: str) -> None:
    """Refuse a graph whose weights are not finite; every weight is read once for it.

    NaN and infinity are refused in any constant of more than one element, -inf in weights of sites and in tables of
    embeddings: a mask may hold it.

    Args:
        model: the graph.
        sites: its sites.
        where: its origin, for the error.

    Raises:
        GraphError: naming the weight, and the site that it belongs to.
    """
    nodes = {node.name: node for node in model.graph}
    owners: dict[ir.Value, Site] = {}
    for site in sites:
        weight = weight_of(nodes[site.node].inputs[1]) if site.node in nodes else None
        if weight is not None:
            owners.setdefault(weight.initializer, site)
    tables = _tables(model.graph)
    for name, value in model.graph.initializers.items():
        tensor, owner = value.const_value, owners.get(value)
        if tensor is None or tensor.dtype not in FLOATS or tensor.size < 2:
            continue
        strict = owner is not None or value in tables
        if any(strict or not np.isneginf(part.astype(np.float32)).all() for part in _not_finite(tensor)):
            raise GraphError(
                f"the weight '{name}'" + (f" of {owner.key}" if owner is not None else "") + " is NaN or infinite",
                where=where,
                remedy="export the model again from sound weights",
            )


def _tables(graph: ir.Graph) -> set[ir.Value]:
    """Constants that rows are looked up in which become more than a mask."""
    harm = harms(graph)
    looked_up = (node for node in graph if node.op_type == "Gather" and harm.get(node.outputs[0]) is Harm.ANY)
    return {weight.initializer for node in looked_up if (weight := weight_of(node.inputs[0])) is not None}


def _not_finite(tensor: ir.TensorProtocol) -> Iterator[npt.NDArray[np.generic]]:
    """The numbers of a tensor that are NaN or infinite, some at a time."""
    flat = np.asarray(tensor.numpy()).reshape(-1)
    exponent = _EXPONENTS[tensor.dtype]
    for start in range(0, flat.size, _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        bits = part.view(f"u{part.dtype.itemsize}")
        bad = (bits & bits.dtype.type(exponent)) == exponent
        if bad.any():
            yield part[bad]
