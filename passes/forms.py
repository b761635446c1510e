"""Forms that only some targets take: MatMulInteger, FP8 in Q/DQ, weights alone in 8 bits, products in half."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.editor import ADDED, Editor, Operand, describe_like
from spq_graph.passes.encode import fp8_codes, fp8_scales, half_weight, in_blocks, integer_codes, integer_scales
from spq_graph.passes.fp8 import E4M3, activation_scale
from spq_graph.passes.scales import ActivationQuantizer, block_size_for
from spq_graph.plan import SitePlan
from spq_graph.recipe import Precision, Recipe
from spq_graph.targets import Form

FP8 = ir.DataType(E4M3.element_type)
BLOCKED_OPSET = 21  # the first whose DequantizeLinear takes blocks
# On a CPU, MatMulNBits rounds activations to int8 by block at level 4, the only one with a fast kernel: one scale for
# each block of one token, so that a spike costs its own block only. At level 1 they stay in float32.
ACCURACY_LEVELS = {Form.NBITS: 4, Form.NBITS_FLOAT: 1}
HALVES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}


def quantizer_of(site: SitePlan, recipe: Recipe, *, emulate: bool = False) -> ActivationQuantizer:
    """The quantizer of a site's activation; what emulates a signed one has the same steps around 128.

    Raises:
        GraphError: the plan holds no range for it.
    """
    bits = site.precision.bits
    if bits is None or site.range is None:
        raise GraphError("the plan holds no range for this site's activation", where=site.key, remedy="calibrate again")
    return ActivationQuantizer.fit(*site.range, bits, recipe.activations, signed=recipe.profile.signed and not emulate)


def weight_bits(bits: int, recipe: Recipe) -> int:
    """Bits of an integer site's weight: one less at 8 where sums of two products must not pass 16 bits."""
    return 7 if bits == 8 and recipe.reduce_range else bits


def quantized(editor: Editor, node: ir.Node, prefix: str, quantizer: ActivationQuantizer) -> ir.Value:
    """Codes of a product's activation; one quantizer serves all products that read it."""
    name = f"{prefix}.QuantizeLinear"
    if name in editor.shared:
        return editor.shared[name]
    value = node.inputs[0]
    if quantizer.bits < 8:
        low = editor.constant(f"{prefix}.low", ir.tensor(quantizer.low))
        high = editor.constant(f"{prefix}.high", ir.tensor(quantizer.high))
        value = editor.add(node, "Clip", [value, low, high], f"{prefix}.Clip", ir.DataType.FLOAT, like=value)
    scale = editor.constant(f"{prefix}.scale", ir.tensor(quantizer.scale))
    zero = editor.constant(f"{prefix}.zero_point", ir.tensor(quantizer.zero_point))
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


def insert_matmul_integer(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe) -> None:
    """Replace a product by MatMulInteger on int8 codes, and Cast and Mul that give its sums their scale.

    Raises:
        GraphError: the plan holds no range for the activation.
    """
    quantizer = quantizer_of(site, recipe)
    bits = weight_bits(quantizer.bits, recipe)
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    codes = quantized(editor, node, f"{site.input}.{site.precision}", quantizer)
    scales = integer_scales(operand, bits, recipe.weights)
    prefix = f"{site.node}.weight.{site.precision}"
    inputs = [codes, editor.constant(f"{prefix}.codes", integer_codes(operand, scales, bits, f"{prefix}.codes"))]
    editor.substitute(node, "MatMulInteger", inputs, "", {})
    node = editor.nodes[site.node]
    sums = node.outputs[0]
    cast = ir.node("Cast", [sums], {"to": int(ir.DataType.FLOAT)}, name=editor.fresh(f"{site.node}.sums"))
    scale = editor.constant(f"{prefix}.product_scale", ir.tensor(quantizer.scale * scales))
    scaled = ir.node("Mul", [cast.outputs[0], scale], name=editor.fresh(f"{site.node}.scaled"))
    editor.model.graph.insert_after(node, [cast, scaled])
    for added in (cast, scaled):
        added.metadata_props[ADDED] = site.node
        describe_like(added.outputs[0], sums)
        added.outputs[0].name = editor.fresh(f"{added.name}.out")
    editor.take_over(sums, scaled.outputs[0])
    cast.replace_input_with(0, sums)
    sums.dtype = ir.DataType.INT32


def insert_fp8_pair(
    editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe, *, emulate: bool = False
) -> None:
    """Put Q/DQ in E4M3 on both operands of a site.

    To emulate it, Cast and Mul widen the weight: ONNX Runtime's CPU provider merges two DequantizeLinear of FP8 and a
    MatMul into an operator that it cannot run.

    Raises:
        GraphError: the plan holds no range for the activation, or the weight is not finite.
    """
    if site.range is None:
        raise GraphError("the plan holds no range for this site's activation", where=site.key, remedy="calibrate again")
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    prefix = f"{site.input}.{site.precision}"
    name = f"{prefix}.QuantizeLinear"
    if name not in editor.shared:
        scale = editor.constant(f"{prefix}.scale", ir.tensor(activation_scale(*site.range, E4M3)))
        zero = editor.constant(f"{prefix}.zero_point", ir.tensor(np.zeros((), E4M3.dtype), dtype=FP8))
        value = node.inputs[0]
        editor.shared[name] = editor.add(node, "QuantizeLinear", [value, scale, zero], name, FP8, like=value)
    node.replace_input_with(0, dequantized(editor, node, prefix, editor.shared[name]))
    node.replace_input_with(1, _fp8_weight(editor, node, operand, site, recipe, emulate))


def _fp8_weight(
    editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe, emulate: bool
) -> ir.Value:
    scales = fp8_scales(operand, recipe.weights if recipe.profile.fp8_per_channel else "per_tensor")
    prefix = f"{site.node}.weight.{E4M3.name}"
    codes = editor.constant(
        f"{prefix}.codes",
        ir.LazyTensor(
            lambda: ir.tensor(fp8_codes(operand, scales).view(E4M3.dtype), dtype=FP8),
            dtype=FP8,
            shape=ir.Shape(site.shape),
            name=f"{prefix}.codes",
        ),
    )
    scale = editor.constant(f"{prefix}.scale", ir.tensor(scales))
    to = ir.DataType.FLOAT
    if emulate:
        wide = editor.add(node, "Cast", [codes], f"{prefix}.Cast", to, to=int(to))
        return editor.add(node, "Mul", [wide, scale], f"{prefix}.Mul", to)
    axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
    return editor.add(node, "DequantizeLinear", [codes, scale], f"{prefix}.DequantizeLinear", to, **axis)


def insert_weight(
    editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe, *, emulate: bool = False
) -> None:
    """Put DequantizeLinear on a site's weight alone, in int8 or FP8; the activation stays as it is.

    Integers have a scale for each block of K where the opset has blocks and K is made of whole ones, and otherwise one
    for each output channel.
    """
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    if site.precision.is_fp8:
        node.replace_input_with(1, _fp8_weight(editor, node, operand, site, recipe, emulate))
        return
    block = block_of(site, editor.model.graph.opset_imports[""])
    prefix = f"{site.node}.weight.{site.precision}"
    if block:
        scales = np.ascontiguousarray(in_blocks(operand).scales.T)
        attributes: dict[str, Any] = {"axis": 0, "block_size": block}
        codes: ir.TensorProtocol = ir.LazyTensor(
            lambda: ir.tensor(_rows_of_blocks(in_blocks(operand).codes, site.shape)),
            dtype=ir.DataType.INT8,
            shape=ir.Shape(site.shape),
            name=f"{prefix}.codes",
        )
    else:
        scales, attributes = integer_scales(operand, 8), {"axis": 1}
        codes = integer_codes(operand, scales, 8, f"{prefix}.codes")
    inputs = [editor.constant(f"{prefix}.codes", codes), editor.constant(f"{prefix}.scale", ir.tensor(scales))]
    name = f"{prefix}.DequantizeLinear"
    node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **attributes))


def block_of(site: SitePlan, opset: int) -> int | None:
    """Rows of K that share a scale of a weight that stands alone; None for one scale for each output channel."""
    block = block_size_for(site.shape[0])
    return block if opset >= BLOCKED_OPSET and site.shape[0] % block == 0 else None


def _rows_of_blocks(codes: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Codes [N, blocks, block] around 128 as int8 [K, N]."""
    return np.ascontiguousarray((codes.astype(np.int16) - 128).astype(np.int8).reshape(shape[1], shape[0]).T)


def insert_computed(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, *, emulate: bool = False) -> None:
    """Compute a product in half precision: Cast in front of both operands, and back behind it.

    To emulate it, operands and result are rounded but multiplied in float32, which any runtime can: what an
    accelerator with float32 sums computes.

    Raises:
        GraphError: a weight does not fit float16.
    """
    half = HALVES[site.precision]
    if operand.dtype is half:
        return
    node = editor.as_matmul(node)
    if emulate:
        editor.widen(node, operand.dtype)
    value = node.inputs[0]
    name = f"{site.input}.{site.precision}"
    if name not in editor.shared:
        rounded = editor.add(node, "Cast", [value], name, half, like=value, to=int(half))
        editor.shared[name] = _widened(editor, node, rounded, name) if emulate else rounded
    node.replace_input_with(0, editor.shared[name])
    prefix = f"{site.node}.weight.{site.precision}"
    weight = editor.constant(prefix, half_weight(operand, half, site.key, prefix))
    node.replace_input_with(1, _widened(editor, node, weight, prefix) if emulate else weight)
    if emulate:
        editor.narrow(editor.narrow(node, ir.DataType.FLOAT, half), half, ir.DataType.FLOAT)
    else:
        editor.narrow(node, half, operand.dtype)


def _widened(editor: Editor, node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    to = ir.DataType.FLOAT
    return editor.add(node, "Cast", [value], f"{name}.back", to, like=value, to=int(to))
