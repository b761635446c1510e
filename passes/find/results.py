"""How large the results of products can be, by what their activations were: for formats that do not hold everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import attribute_of, weight_of
from spq_graph.terms.site import Site


def largest_results(
    model: ir.Model, sites: Sequence[Site], channels: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, float]:
    """A bound of the absolute results of products: that of every channel at its largest, all with one sign.

    Args:
        model: the graph.
        sites: its sites.
        channels: by site key, the largest absolute activation by channel, float32 [K].

    Returns:
        By site key; a site without channels is left out. Every weight is read once for it.
    """
    nodes = {node.name: node for node in model.graph}
    found: dict[str, float] = {}
    for site in sites:
        node, most = nodes.get(site.node), channels.get(site.key)
        weight = weight_of(node.inputs[1]) if node is not None else None
        if node is None or weight is None or most is None or most.shape != site.shape[:1]:
            continue
        total = np.zeros(site.shape[1], dtype=np.float64)
        for rows, block in Operand(weight, bool(attribute_of(node, "transB", 0))).blocks():
            total += most[rows].astype(np.float64) @ np.abs(block)
        found[site.key] = float(total.max())
    return found
