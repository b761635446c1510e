"""FP8 in Q/DQ on both operands, for runtimes that multiply in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import FP8
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.integer import NEVER_QUANTIZED, dequantized
from spq_graph.passes.forms.rules import Around, FormRules, Place, Wanted, producer_of
from spq_graph.passes.forms.steps import QUANTIZE, Step, cast_to, dequantize
from spq_graph.passes.forms.storages import Fp8Codes
from spq_graph.passes.numbers.fp8 import E4M3, activation_scale


def codes_of(wanted: Wanted, operand: Operand) -> Fp8Codes:
    """E4M3 codes, with a scale for each output channel where the target has that."""
    return Fp8Codes(operand, wanted.recipe.weights if wanted.profile.fp8_per_channel else "per_tensor")


def insert_weight(at: Place, storage: Storage, *, widened: bool) -> None:
    """Put what dequantizes FP8 codes in front of a product's weight.

    Cast and Mul do what DequantizeLinear does: ONNX Runtime's CPU provider merges two DequantizeLinear of FP8 and a
    MatMul into an operator that it cannot run.
    """
    editor, node, to = at.editor, at.node, ir.DataType.FLOAT
    prefix = f"{at.site.node}.weight.{E4M3.name}"
    storage = at.known(storage)
    scales = storage.known_scales
    codes, scale = at.stored(storage, f"{prefix}.codes"), at.beside(storage, f"{prefix}.scale", scales)
    if widened:
        wide = editor.add(node, "Cast", [codes], f"{prefix}.Cast", to, to=int(to))
        weight = editor.add(node, "Mul", [wide, scale], f"{prefix}.Mul", to)
    else:
        axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
        weight = editor.add(node, "DequantizeLinear", [codes, scale], f"{prefix}.DequantizeLinear", to, **axis)
    node.replace_input_with(1, weight)


def around_weight(wanted: Wanted, *, widened: bool) -> list[Step]:
    """What `insert_weight` inserts."""
    if widened:
        return [Step("Mul", 2), cast_to(ir.DataType.FLOAT)]
    whole = wanted.recipe.weights == "per_tensor" or not wanted.profile.fp8_per_channel
    return [dequantize(2) if whole else dequantize(2, axis=1)]


@dataclass(frozen=True, slots=True)
class Fp8Pair(FormRules):
    """Q/DQ in E4M3 on both operands.

    Attributes:
        widened_weight: whether Cast and Mul stand in for the weight's DequantizeLinear.
    """

    widened_weight: bool = False

    def insert(self, at: Place) -> None:
        """Write it."""
        low, high = at.wanted.range
        at.as_matmul()
        at.widen()
        editor, node, prefix = at.editor, at.node, at.activation
        name = f"{prefix}.QuantizeLinear"
        if name not in editor.shared:
            scale = editor.constant(f"{prefix}.scale", ir.Tensor(activation_scale(low, high, E4M3)))
            zero = editor.constant(f"{prefix}.zero_point", ir.Tensor(np.zeros((), E4M3.dtype), dtype=FP8))
            value = node.inputs[0]
            editor.shared[name] = editor.add(node, "QuantizeLinear", [value, scale, zero], name, FP8, like=value)
        node.replace_input_with(0, dequantized(editor, node, prefix, editor.shared[name]))
        insert_weight(at, self.storage(at.wanted, at.operand), widened=self.widened_weight)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """E4M3 codes."""
        return codes_of(wanted, operand)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether the scale of its activation is the one that its range asks for."""
        back = producer_of(node.inputs[0], "DequantizeLinear")
        quantize = producer_of(back.inputs[0], "QuantizeLinear") if back is not None else None
        if quantize is None:
            return NEVER_QUANTIZED
        scale, zero = ir.Tensor(activation_scale(*wanted.range, E4M3)), ir.Tensor(np.zeros((), E4M3.dtype), dtype=FP8)
        if len(quantize.inputs) != 3 or not (holds(quantize.inputs[1], scale) and holds(quantize.inputs[2], zero)):
            return "its activation has another scale than its range asks for"
        return None

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """Both pairs."""
        pair = [dequantize(), QUANTIZE]
        return self.widened(Around(pair, around_weight(wanted, widened=self.widened_weight), []), operand)
