"""A constant weight too large for one session becomes several, each with some of the columns.

Every column of a product is computed from the same row of activations, so the parts together are the whole product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.editor import Editor, describe_like, drop_unused
from spq_graph.passes.base.values import FLOATS, Weight, is_product, weight_of

_FLOAT32_BYTES = 4


class PartWide(CanonicalPass):
    """Part every MatMul whose constant weight takes more than `limit` bytes as float32, and is not mapped from a file.

    The result is for running, not for keeping: parts are nodes and weights of their own. The graph must have been
    through `Canonicalize`.
    """

    def __init__(self, limit: int, mapped: Callable[[ir.Value], bool] = lambda _: False) -> None:
        super().__init__()
        self.limit, self.mapped = limit, mapped

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wide = [(node, weight) for node in model.graph if (weight := self._too_wide(node)) is not None]
        if wide:
            editor = Editor(model)
            for node, weight in wide:
                self._part(editor, node, weight)
        return ir.passes.PassResult(model, modified=bool(wide))

    def ensures(self, model: ir.Model) -> None:
        """No product is left that could be parted."""
        left = (n.name for n in model.graph if (weight := self._too_wide(n)) is not None and weight.shape[1] > 1)
        promise(next((f"{name} is too wide still" for name in left), None))

    def _too_wide(self, node: ir.Node) -> Weight | None:
        if not is_product(node) or node.op_type != "MatMul":
            return None
        operand = node.inputs[1]
        weight = weight_of(operand)
        if weight is None or weight.dtype not in FLOATS or len(weight.shape) != 2:
            return None
        if operand is not None and self.mapped(operand):
            return None
        return weight if _FLOAT32_BYTES * weight.tensor.size > self.limit else None

    def _part(self, editor: Editor, node: ir.Node, weight: Weight) -> None:
        rows, columns = weight.shape
        step = max(1, self.limit // (_FLOAT32_BYTES * rows))
        whole, name, before = node.outputs[0], node.name or "", node.inputs[1]
        dtype = whole.dtype or weight.dtype
        parts = []
        for number, start in enumerate(range(0, columns, step)):
            end = min(start + step, columns)
            operand = editor.constant(f"{name}.part_{number}", _columns(weight, start, end))
            for cast in (n for n in weight.through if n.op_type == "Cast"):
                to = ir.DataType(cast.attributes["to"].as_int())
                operand = editor.add(node, "Cast", [operand], f"{name}.part_{number}.Cast", to, to=int(to))
            parts.append(editor.add(node, "MatMul", [node.inputs[0], operand], f"{name}.part_{number}.MatMul", dtype))
        together = editor.add(node, "Concat", parts, f"{name}.parts", dtype, axis=-1)
        describe_like(together, whole)
        editor.take_over(whole, together)
        editor.model.graph.remove(node, safe=True)
        if before is not None:
            drop_unused(editor.model, [before])


def _columns(weight: Weight, start: int, end: int) -> ir.TensorProtocol:
    dtype, shape = weight.tensor.dtype, ir.Shape([weight.shape[0], end - start])
    return ir.LazyTensor(partial(_cut, weight, start, end), dtype=dtype, shape=shape)


def _cut(weight: Weight, start: int, end: int) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(weight.stored()[:, start:end]), dtype=weight.tensor.dtype)
