"""Floating point: a product that is stored, or computed, in another type than the graph's."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.rules import HALF_PRECISIONS, Around, FormRules, Place, Wanted
from spq_graph.passes.forms.steps import cast_to
from spq_graph.passes.forms.storages import Halves, half_weight
from spq_graph.terms.precision import Precision

HALF_TYPES = {precision: dtype for dtype, precision in HALF_PRECISIONS.items()}


class StoredHalf(FormRules):
    """The weight held in half precision, and widened to what the product computes in.

    Weights of a graph in half precision stay stored in it and are widened exactly; of a float32 graph, `fp16` stores
    half.
    """

    def insert(self, at: Place) -> None:
        """Write it."""
        at.as_matmul()
        half, single = _half(at.wanted, at.operand), at.site.precision is Precision.FP32
        if single:
            at.widen()
        name = f"{at.site.node}.weight.{HALF_PRECISIONS[half]}"
        held = at.stored(half_weight(at.operand, half, at.site.key), name)
        to = ir.DataType.FLOAT if single else at.operand.dtype
        at.node.replace_input_with(1, at.editor.add(at.node, "Cast", [held], f"{name}.Cast", to, to=int(to)))

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Half precision."""
        return Halves(operand, _half(wanted, operand))

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """A Cast on the weight."""
        if wanted.site.precision is Precision.FP32:
            return self.widened(Around([], [cast_to(ir.DataType.FLOAT)], []), operand)
        return Around([], [cast_to(operand.dtype)], [])


def _half(wanted: Wanted, operand: Operand) -> ir.DataType:
    return operand.dtype if wanted.site.precision is Precision.FP32 else HALF_TYPES[wanted.site.precision]


@dataclass(frozen=True, slots=True)
class Computed(FormRules):
    """The product itself computed in half precision: Cast in front of both operands, and back behind it.

    Attributes:
        rounded: whether operands and result are rounded to it but multiplied in float32, which any runtime can: what an
            accelerator with float32 sums computes.
    """

    rounded: bool = False

    def insert(self, at: Place) -> None:
        """Write it."""
        editor, half = at.editor, HALF_TYPES[at.site.precision]
        at.as_matmul()
        if self.rounded:
            at.widen()
        node, name = at.node, at.activation
        value = node.inputs[0]
        if name not in editor.shared:
            cast = editor.add(node, "Cast", [value], name, half, like=value, to=int(half))
            editor.shared[name] = _back(at, cast, name) if self.rounded else cast
        node.replace_input_with(0, editor.shared[name])
        weight = at.stored(half_weight(at.operand, half, at.site.key), at.weight)
        node.replace_input_with(1, _back(at, weight, at.weight) if self.rounded else weight)
        if self.rounded:
            editor.narrow(editor.narrow(node, ir.DataType.FLOAT, half), half, ir.DataType.FLOAT)
        else:
            editor.narrow(node, half, at.operand.dtype)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Half precision."""
        return Halves(operand, HALF_TYPES[wanted.site.precision])

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether it is computed in the type of its operands."""
        kinds = {v.dtype for v in (node.inputs[1], node.outputs[0]) if v is not None and v.dtype is not None}
        return "its product is not computed in the type of its operands" if len(kinds) > 1 else None

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """A Cast on the activation, and back."""
        half, single = cast_to(HALF_TYPES[wanted.site.precision]), cast_to(ir.DataType.FLOAT)
        if self.rounded:
            return self.widened(Around([single, half], [single], [half, single]), operand)
        return Around([half], [], [cast_to(operand.dtype)])


def _back(at: Place, value: ir.Value, name: str) -> ir.Value:
    to = ir.DataType.FLOAT
    return at.editor.add(at.node, "Cast", [value], f"{name}.back", to, like=value, to=int(to))
