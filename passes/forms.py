"""Forms that only some targets take: MatMulInteger, FP8 in Q/DQ, weights alone in 8 bits, products in half."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.editor import ADDED, Editor, Operand, describe_like
from spq_graph.passes.encode import Blocks, Fp8Codes, Fp8Panels, Halves, Integers, SignedBlocks, Storage, half_weight
from spq_graph.passes.fp8 import E4M3, activation_scale
from spq_graph.passes.scales import ActivationQuantizer, block_size_for
from spq_graph.plan import SitePlan
from spq_graph.recipe import Precision, Recipe
from spq_graph.targets import Form

FP8 = ir.DataType(E4M3.element_type)
BLOCKED_OPSET = 21  # the first whose DequantizeLinear takes blocks
# The floating-point precision that a product has if it is left alone.
AS_IS = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}
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
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    codes = quantized(editor, node, f"{site.input}.{site.precision}", quantizer)
    prefix = f"{site.node}.weight.{site.precision}"
    weight, scales = stored(editor, f"{prefix}.codes", operand, site, recipe)
    editor.substitute(node, "MatMulInteger", [codes, weight], "", {})
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
    prefix = f"{site.node}.weight.{E4M3.name}"
    codes, scales = stored(editor, f"{prefix}.codes", operand, site, recipe)
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
    attributes: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
    codes, scales = stored(editor, f"{prefix}.codes", operand, site, recipe)
    inputs = [codes, editor.constant(f"{prefix}.scale", ir.tensor(scales))]
    name = f"{prefix}.DequantizeLinear"
    node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **attributes))


def block_of(site: SitePlan, opset: int) -> int | None:
    """Rows of K that share a scale of a weight that stands alone; None for one scale for each output channel."""
    block = block_size_for(site.shape[0])
    return block if opset >= BLOCKED_OPSET and site.shape[0] % block == 0 else None


def is_as_it_was(site: SitePlan, operand: Operand) -> bool:
    """Whether a site has the precision that the graph computes in, which is then left as it is; doubles are single."""
    return site.precision is AS_IS.get(operand.dtype, Precision.FP32)


def nbits_attributes(site: SitePlan, form: Form) -> dict[str, int]:
    """The attributes of a site's MatMulNBits."""
    rows, columns = site.shape
    block = block_size_for(rows)
    return {"K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": ACCURACY_LEVELS[form]}


def half_of(site: SitePlan, operand: Operand) -> ir.DataType:
    """The half precision that a site in floating point has its weight stored in, where it is not left as it is."""
    return operand.dtype if site.precision is Precision.FP32 else HALVES[site.precision]


def storage_of(site: SitePlan, operand: Operand, recipe: Recipe, opset: int) -> Storage:
    """How a site's weight is stored in the form that its target executes; asked by who writes and by who checks."""
    form, fp8 = recipe.profile.forms[site.precision], site.precision.is_fp8
    if form is Form.OPERATOR:
        return Fp8Panels(operand, recipe.weights)
    if fp8:
        return Fp8Codes(operand, recipe.weights if recipe.profile.fp8_per_channel else "per_tensor")
    if form in ACCURACY_LEVELS:
        return Blocks(operand)
    if form is Form.WEIGHT:
        return SignedBlocks(operand) if block_of(site, opset) else Integers(operand, 8)
    if site.precision.bits is not None:
        return Integers(operand, weight_bits(site.precision.bits, recipe), recipe.weights)
    return Halves(operand, half_of(site, operand))


def stored(
    editor: Editor, name: str, operand: Operand, site: SitePlan, recipe: Recipe
) -> tuple[ir.Value, npt.NDArray[np.float32]]:
    """The weight of a site as a new constant of the graph, and the scales that belong to it.

    Raises:
        GraphError: the weight is not finite.
    """
    storage = storage_of(site, operand, recipe, editor.model.graph.opset_imports[""])
    scales = storage.scales
    assert scales is not None  # halves have none, and are stored by who inserts them
    return editor.constant(name, storage.tensor(name, site.key)), scales


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
    weight = editor.constant(prefix, half_weight(operand, half, site.key).tensor(prefix, site.key))
    node.replace_input_with(1, _widened(editor, node, weight, prefix) if emulate else weight)
    if emulate:
        editor.narrow(editor.narrow(node, ir.DataType.FLOAT, half), half, ir.DataType.FLOAT)
    else:
        editor.narrow(node, half, operand.dtype)


def _widened(editor: Editor, node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    to = ir.DataType.FLOAT
    return editor.add(node, "Cast", [value], f"{name}.back", to, like=value, to=int(to))
