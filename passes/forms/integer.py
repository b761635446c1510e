"""Integer products: Q/DQ around a product that the runtime fuses, and MatMulInteger where it fuses none.

For ONNX Runtime to run a site as one integer kernel on a CPU, activations are unsigned and quantized at inputs only,
weights are signed and symmetric, and all products that read one value share one quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.editor import Editor, describe_like
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.branch import add_branch, branch_steps, differing_branch
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.rules import Around, FormRules, Place, Wanted, producer_of
from spq_graph.passes.forms.steps import QUANTIZE, Step, cast_to, dequantize
from spq_graph.passes.forms.storages import Integers
from spq_graph.passes.numbers.scales import ActivationQuantizer

OTHER_QUANTIZER = "its activation has another quantizer than its range asks for"
NEVER_QUANTIZED = "its activation is dequantized but never quantized"


def weight_bits(wanted: Wanted) -> int:
    """Bits of an integer site's weight: one less at 8 where sums of two products must not pass 16 bits."""
    bits = wanted.site.precision.bits
    assert bits is not None
    return 7 if bits == 8 and wanted.recipe.reduce_range else bits


def quantized(at: Place, quantizer: ActivationQuantizer) -> ir.Value:
    """Codes of a product's activation; one quantizer serves all products that read it."""
    editor, node, prefix = at.editor, at.node, at.activation
    name = f"{prefix}.QuantizeLinear"
    if name in editor.shared:
        return editor.shared[name]
    value = node.inputs[0]
    if quantizer.bits < 8:
        low = editor.constant(f"{prefix}.low", ir.Tensor(quantizer.low))
        high = editor.constant(f"{prefix}.high", ir.Tensor(quantizer.high))
        value = editor.add(node, "Clip", [value, low, high], f"{prefix}.Clip", ir.DataType.FLOAT, like=value)
    scale = editor.constant(f"{prefix}.scale", ir.Tensor(quantizer.scale))
    zero = editor.constant(f"{prefix}.zero_point", ir.Tensor(quantizer.zero_point))
    kind = ir.DataType.from_numpy(quantizer.zero_point.dtype)
    editor.shared[name] = editor.add(node, "QuantizeLinear", [value, scale, zero], name, kind, like=value)
    return editor.shared[name]


def dequantized(editor: Editor, node: ir.Node, prefix: str, codes: ir.Value) -> ir.Value:
    """What codes of an activation stand for, by the scale and zero point that made them; float32."""
    name = f"{prefix}.DequantizeLinear"
    if name not in editor.shared:
        quantize = codes.producer()
        assert quantize is not None
        inputs = [codes, *quantize.inputs[1:]]
        editor.shared[name] = editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, like=codes)
    return editor.shared[name]


def differing_quantizer(quantize: ir.Node | None, wanted: ActivationQuantizer) -> str | None:
    """Whether a node is the quantizer that a range asks for, and a Clip in front of it keeps to its bits."""
    if quantize is None:
        return NEVER_QUANTIZED
    if not hold(quantize.inputs[1:], wanted.scale, wanted.zero_point):
        return OTHER_QUANTIZER
    clip = producer_of(quantize.inputs[0], "Clip")
    if wanted.bits < 8 and not (clip is not None and hold(clip.inputs[1:], wanted.low, wanted.high)):
        return f"no Clip keeps its activation within {wanted.bits} bits"
    return None


def hold(found: Sequence[ir.Value | None], *expected: np.generic) -> bool:
    """Whether values are these constants, one by one, and no others."""
    return len(found) == len(expected) and all(
        holds(value, ir.Tensor(number)) for value, number in zip(found, expected, strict=True)
    )


class _WithBranch(FormRules):
    """What integer products have in common: an outlier branch in plain nodes joins behind them."""

    def differing_branch(
        self, node: ir.Node, activation: Sequence[ir.Node], result: Sequence[ir.Node], wanted: Wanted, operand: Operand
    ) -> str | None:
        """By its nodes."""
        return differing_branch(activation, result, wanted, operand)


class IntegerQdq(_WithBranch):
    """QuantizeLinear and DequantizeLinear in front of the activation, DequantizeLinear in front of the weight."""

    def insert(self, at: Place) -> None:
        """Write it."""
        quantizer = at.wanted.quantizer
        at.as_matmul()
        at.widen()
        editor, node, activation = at.editor, at.node, at.node.inputs[0]
        node.replace_input_with(0, dequantized(editor, node, at.activation, quantized(at, quantizer)))
        storage = at.known(self.storage(at.wanted, at.operand))
        scales = storage.known_scales
        inputs = [
            at.stored(storage, f"{at.weight}.codes"),
            at.beside(storage, f"{at.weight}.scale", scales),
            at.beside(storage, f"{at.weight}.zero_point", np.zeros(scales.shape, dtype=np.int8)),
        ]
        axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
        name = f"{at.weight}.DequantizeLinear"
        node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **axis))
        add_branch(at, activation, node.outputs[0])
        editor.shield(node)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Symmetric codes."""
        return Integers(wanted.in_integers(operand), weight_bits(wanted), wanted.recipe.weights)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether the quantizer of its activation is the one that range and bits ask for."""
        if node.op_type != "MatMul":
            return f"it is a {node.op_type}, the target takes {wanted.form}"
        back = producer_of(node.inputs[0], "DequantizeLinear")
        quantize = producer_of(back.inputs[0], "QuantizeLinear") if back is not None else None
        text = differing_quantizer(quantize, wanted.quantizer)
        if text is not None:
            return text
        reads = self.holder(node).inputs
        scales = reads[1].const_value if len(reads) == 3 and reads[1] is not None else None
        zeros = ir.Tensor(np.zeros(() if scales is None else scales.shape.numpy(), dtype=np.int8))
        return None if scales is not None and holds(reads[2], zeros) else "its weight has a zero point that is not 0"

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """Both pairs, and a Clip below 8 bits."""
        axis = {} if wanted.recipe.weights == "per_tensor" else {"axis": 1}
        pair = [dequantize(), *_quantizing(wanted)]
        return self.widened(Around(pair, [dequantize(**axis)], branch_steps(wanted)), operand)


class MatMulInteger(_WithBranch):
    """MatMulInteger on int8 codes, and Cast and Mul that give its sums their scale."""

    def insert(self, at: Place) -> None:
        """Write it."""
        quantizer = at.wanted.quantizer
        at.as_matmul()
        at.widen()
        editor, site, activation = at.editor, at.site, at.node.inputs[0]
        codes = quantized(at, quantizer)
        storage = at.known(self.storage(at.wanted, at.operand))
        weight, scales = at.stored(storage, f"{at.weight}.codes"), storage.known_scales
        editor.substitute(at.node, "MatMulInteger", [codes, weight], "", {})
        node = editor.nodes[site.node]
        sums = node.outputs[0]
        cast = ir.node("Cast", [sums], {"to": int(ir.DataType.FLOAT)}, name=editor.fresh(f"{site.node}.sums"))
        scale = editor.constant(f"{at.weight}.product_scale", ir.Tensor(quantizer.scale * scales))
        scaled = ir.node("Mul", [cast.outputs[0], scale], name=editor.fresh(f"{site.node}.scaled"))
        editor.model.graph.insert_after(node, [cast, scaled])
        for added in (cast, scaled):
            added.metadata_props[ADDED] = site.node
            describe_like(added.outputs[0], sums)
            added.outputs[0].name = editor.fresh(f"{added.name}.out")
        editor.take_over(sums, scaled.outputs[0])
        cast.replace_input_with(0, sums)
        sums.type = ir.TensorType(ir.DataType.INT32)
        add_branch(at, activation, scaled.outputs[0])

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Symmetric codes."""
        return Integers(wanted.in_integers(operand), weight_bits(wanted), wanted.recipe.weights)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether the quantizer of its activation is the one that range and bits ask for."""
        if node.op_type != "MatMulInteger":
            return f"it is a {node.op_type}, the target takes {wanted.form}"
        return differing_quantizer(producer_of(node.inputs[0], "QuantizeLinear"), wanted.quantizer)

    def product(self, wanted: Wanted) -> Step:
        """Of codes."""
        return Step("MatMulInteger", 2)

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """The quantizer, and what makes numbers of the sums."""
        scaled = [cast_to(ir.DataType.FLOAT), Step("Mul", 2)]
        return self.widened(Around(_quantizing(wanted), [], [*scaled, *branch_steps(wanted)]), operand)

    def scales(self, node: ir.Node) -> ir.Value | None:
        """What the sums are multiplied by, behind the Cast that makes numbers of them."""
        cast = _only_user(node, "Cast")
        scaled = _only_user(cast, "Mul") if cast is not None else None
        return scaled.inputs[1] if scaled is not None else None

    def expected_scales(self, storage: Storage, wanted: Wanted) -> npt.NDArray[np.float32] | None:
        """Those of the weight by that of the activation."""
        assert storage.scales is not None
        return np.asarray(wanted.quantizer.scale * storage.scales)


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    """What alone reads a node's result, where it is this operator."""
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _quantizing(wanted: Wanted) -> list[Step]:
    bits = wanted.site.precision.bits
    return [QUANTIZE, *([Step("Clip", 3)] if bits is not None and bits < 8 else [])]
