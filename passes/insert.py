"""Insert what a plan decided: QDQ where a site runs in integers, and the high-precision forms of the rest.

For ONNX Runtime to run a site as one integer kernel, activations are unsigned and quantized at inputs only, weights are
signed and symmetric, and all products that read one value share one quantizer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.errors import GraphError, SpqError
from spq_graph.passes.editor import Editor, Operand, drop_unused
from spq_graph.passes.fp8 import WEIGHTS, fp8_weight_codes, pack_panels, panel_shape
from spq_graph.passes.operator import DOMAIN, OP, PANELS_TYPE, Fp8Call, add_function
from spq_graph.passes.scales import (
    ActivationQuantizer,
    BlockedWeight,
    block_size_for,
    blocked_weight,
    scales_to,
    top_code,
    weight_codes,
)
from spq_graph.plan import Plan, SitePlan
from spq_graph.recipe import Precision, Recipe

# accuracy_level 4 of MatMulNBits quantizes activations to int8 in blocks: the only level with a fast CPU kernel. One
# scale for each block of one token, so a spike costs its own block only.
ACCURACY_LEVEL = 4
OLDEST_OPSET = 13
# The floating-point precision that a product has if it is left alone; doubles count as single.
AS_IS = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}


class InsertPrecisions(ir.passes.InPlacePass):
    """Give every site of a plan its precision; nothing else is touched.

    Calling it raises GraphError where a site of the plan is not in the graph, or cannot take its precision.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        require_opset(model, self.plan)
        editor = Editor(model)
        replaced: list[ir.Value] = []
        # In the graph's order: what several sites share stands in front of the first of them.
        order = {name: index for index, name in enumerate(editor.nodes)}
        for site in sorted(self.plan.sites, key=lambda s: order.get(s.node, -1)):
            node, operand = editor.find(site)
            old = node.inputs[1]
            try:
                self._insert(editor, node, operand, site)
            except SpqError as cause:
                raise type(cause)(cause.what, where=cause.where or site.key, remedy=cause.remedy) from cause
            if old is not None:
                replaced.append(old)
        drop_unused(model, replaced)
        return ir.passes.PassResult(model, modified=bool(self.plan.sites))

    def _insert(self, editor: Editor, node: ir.Node, operand: Operand, site: SitePlan) -> None:
        if site.precision.bits is not None:
            insert_integer(editor, node, operand, site, self.plan.recipe)
        elif site.precision is Precision.W8A16:
            insert_w8a16(editor, node, operand, site)
        elif site.precision.is_fp8:
            insert_fp8(editor, node, operand, site, self.plan.recipe)
        else:
            insert_float(editor, node, operand, site)


def require_opset(model: ir.Model, plan: Plan) -> None:
    """Check that the graph's opset can say what the plan wants.

    Raises:
        GraphError: the opset is too old.
    """
    opset = model.graph.opset_imports.get("", 1)
    if opset < OLDEST_OPSET and any(site.precision.bits is not None for site in plan.sites):
        raise GraphError(
            f"the graph has opset {opset}, where DequantizeLinear has no scale per channel",
            remedy=f"export the model again with opset {OLDEST_OPSET} or later",
        )


def insert_integer(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe) -> None:
    """Put QuantizeLinear and DequantizeLinear in front of both operands of a site.

    Raises:
        GraphError: the plan holds no range for the activation.
    """
    bits = site.precision.bits
    if bits is None or site.range is None:
        raise GraphError("the plan holds no range for this site's activation", where=site.key, remedy="calibrate again")
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    quantizer = ActivationQuantizer.fit(*site.range, bits, recipe.activations)
    node.replace_input_with(0, _quantized_input(editor, node, f"{site.input}.int{bits}", quantizer))
    scales = scales_to(operand.absmax(), top_code(bits), recipe.weights)
    prefix = f"{site.node}.weight.int{bits}"
    codes = ir.LazyTensor(
        lambda: ir.tensor(operand.encoded(lambda block: weight_codes(block, scales, bits), np.int8)),
        dtype=ir.DataType.INT8, shape=ir.Shape(site.shape), name=f"{prefix}.codes",
    )  # fmt: skip
    inputs = [
        editor.constant(f"{prefix}.codes", codes),
        editor.constant(f"{prefix}.scale", ir.tensor(scales)),
        editor.constant(f"{prefix}.zero_point", ir.tensor(np.zeros(scales.shape, dtype=np.int8))),
    ]
    axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
    name = f"{prefix}.DequantizeLinear"
    node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **axis))
    editor.shield(node)


def _quantized_input(editor: Editor, node: ir.Node, prefix: str, quantizer: ActivationQuantizer) -> ir.Value:
    if prefix in editor.shared:
        return editor.shared[prefix]
    value = node.inputs[0]
    if quantizer.bits < 8:
        low = editor.constant(f"{prefix}.low", ir.tensor(quantizer.low))
        high = editor.constant(f"{prefix}.high", ir.tensor(quantizer.high))
        value = editor.add(node, "Clip", [value, low, high], f"{prefix}.Clip", ir.DataType.FLOAT, like=value)
    scale = editor.constant(f"{prefix}.scale", ir.tensor(quantizer.scale))
    zero = editor.constant(f"{prefix}.zero_point", ir.tensor(quantizer.zero_point))
    name = f"{prefix}.QuantizeLinear"
    codes = editor.add(node, "QuantizeLinear", [value, scale, zero], name, ir.DataType.UINT8, like=value)
    name = f"{prefix}.DequantizeLinear"
    back = editor.add(node, "DequantizeLinear", [codes, scale, zero], name, ir.DataType.FLOAT, like=value)
    editor.shared[prefix] = back
    return back


def insert_w8a16(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan) -> None:
    """Replace a product by com.microsoft.MatMulNBits: weights in 8 bits by block, activations as they are."""
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    rows, columns = site.shape
    block = block_size_for(rows)
    blocks = -(-rows // block)
    prefix = f"{site.node}.weight.w8a16"
    blocked = partial(_blocked, operand, (columns, blocks), block)
    codes = ir.LazyTensor(
        lambda: ir.tensor(blocked().codes),
        dtype=ir.DataType.UINT8, shape=ir.Shape([columns, blocks, block]), name=f"{prefix}.codes",
    )  # fmt: skip
    inputs = [
        node.inputs[0],
        editor.constant(f"{prefix}.codes", codes),
        editor.constant(f"{prefix}.scale", ir.tensor(blocked().scales.reshape(-1))),
    ]
    attributes = {"K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    editor.substitute(node, "MatMulNBits", inputs, "com.microsoft", attributes)
    editor.model.graph.opset_imports.setdefault("com.microsoft", 1)


def _blocked(operand: Operand, shape: tuple[int, int], size: int) -> BlockedWeight:
    """The whole of a weight in blocks of a size; shape: columns, and blocks along K."""
    codes = np.empty((*shape, size), dtype=np.uint8)
    scales = np.empty(shape, dtype=np.float32)
    for rows, block in operand.blocks():
        part = blocked_weight(block, size)
        first = rows.start // size
        codes[:, first : first + part.codes.shape[1]] = part.codes
        scales[:, first : first + part.codes.shape[1]] = part.scales
    return BlockedWeight(codes, scales, size)


def insert_fp8(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe) -> None:
    """Replace a product by spq::Fp8MatMul: weights in FP8, activations rounded to FP8 or as they are.

    Raises:
        GraphError: the plan holds no range for an activation that is to be rounded, or the weight is not finite.
    """
    call = Fp8Call.of(site, recipe)
    node = editor.as_matmul(node)
    if operand.dtype is not ir.DataType.FLOAT16:  # which the operator reads and writes itself
        editor.widen(node, operand.dtype)
    scales = scales_to(operand.absmax(), WEIGHTS.largest, recipe.weights)
    prefix = f"{site.node}.weight.{WEIGHTS.name}"
    panels = ir.LazyTensor(
        lambda: ir.tensor(
            pack_panels(operand.encoded(lambda block: fp8_weight_codes(block, scales), np.uint8)).view(WEIGHTS.dtype),
            dtype=PANELS_TYPE,
        ),
        dtype=PANELS_TYPE, shape=ir.Shape(panel_shape(site.shape)), name=f"{prefix}.panels",
    )  # fmt: skip
    name = f"{site.input}.{site.precision}.scale" if call.rounds else "spq_graph.no_scale"
    if name not in editor.shared:
        editor.shared[name] = editor.constant(name, ir.tensor(call.a_scale))
    inputs = [
        node.inputs[0],
        editor.constant(f"{prefix}.panels", panels),
        editor.constant(f"{prefix}.scale", ir.tensor(scales)),
        editor.shared[name],
    ]
    editor.substitute(node, OP, inputs, DOMAIN, call.attributes)
    add_function(editor.model)


def insert_float(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan) -> None:
    """Keep a site in floating point; where the precision differs from the graph's, compute in it.

    Weights of a graph in half precision stay stored in it and are widened exactly; of a float32 graph, `fp16` stores
    half.

    Raises:
        GraphError: a weight does not fit float16.
    """
    as_is = AS_IS.get(operand.dtype, Precision.FP32)
    if site.precision in (as_is, Precision.BF16):
        return
    node = editor.as_matmul(node)
    stored = ir.DataType.FLOAT16
    if site.precision is Precision.FP32:
        stored = operand.dtype
        editor.widen(node, stored)
    largest = float(operand.absmax().max())
    if stored is ir.DataType.FLOAT16 and largest > float(np.finfo(np.float16).max):
        raise GraphError(f"a weight of {largest:.4g} does not fit float16", where=site.key, remedy="keep it in fp32")
    prefix = f"{site.node}.weight.{AS_IS[stored]}"
    half = ir.LazyTensor(
        lambda: ir.tensor(operand.encoded(lambda block: block.astype(stored.numpy()), stored.numpy()), dtype=stored),
        dtype=stored, shape=ir.Shape(site.shape), name=prefix,
    )  # fmt: skip
    to = operand.dtype if site.precision is not Precision.FP32 else ir.DataType.FLOAT
    cast = editor.add(node, "Cast", [editor.constant(prefix, half)], f"{prefix}.Cast", to, to=int(to))
    node.replace_input_with(1, cast)
