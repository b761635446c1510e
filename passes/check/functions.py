"""Functions under the names of our operators: where the library is, it computes those and looks at no function."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.forms.functions import own_functions
from spq_graph.terms.errors import GraphError


def refuse_other_functions(model: ir.Model, where: str) -> None:
    """Refuse a model that calls one of our operators and has another function for it than the one that we write.

    With the library such a file computes what the operator does, and without it whatever stands in the function.

    Args:
        model: the graph.
        where: what it is called.

    Raises:
        GraphError: naming the first such function.
    """
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    called = {node.op_type for holder in holders for node in holder.all_nodes() if node.domain == DOMAIN}
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
    own = own_functions(opset)
    for domain, name, overload in model.functions:
        if domain != DOMAIN or name not in called or name not in own:
            continue
        if ir.to_proto(model.functions[domain, name, overload]) != ir.to_proto(own[name]):
            raise GraphError(
                f"function {domain}::{name} is not the one that stands for the operator of that name",
                where=where,
                remedy="make the file again with `spq-graph apply` from the model and its plan",
            )
