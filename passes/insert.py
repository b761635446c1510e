"""Insert what a plan decided: QDQ where a site runs in integers, and the high-precision forms of the rest.

For ONNX Runtime to run a site as one integer kernel, activations are unsigned and quantized at inputs only, weights are
signed and symmetric, and all products that read one value share one quantizer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.editor import Editor, Operand, drop_unused
from spq_graph.passes.scales import (
    ActivationQuantizer,
    block_size_for,
    blocked_weight,
    weight_codes,
    weight_scales,
)
from spq_graph.plan import Plan, SitePlan
from spq_graph.recipe import Precision, Recipe

# accuracy_level 4 of MatMulNBits quantizes activations to int8 in blocks: the only level with a fast CPU kernel. One
# scale for each block of one token, so a spike costs its own block only.
ACCURACY_LEVEL = 4


class InsertPrecisions(ir.passes.InPlacePass):
    """Give every site of a plan its precision; nothing else is touched.

    Calling it raises GraphError where a site of the plan is not in the graph, or cannot take its precision.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        editor = Editor(model)
        replaced: list[ir.Value] = []
        for site in self.plan.sites:
            node, operand = editor.find(site)
            old = node.inputs[1]
            if site.precision.bits is not None:
                insert_integer(editor, node, operand, site, self.plan.recipe)
            elif site.precision is Precision.W8A16:
                insert_w8a16(editor, node, operand, site)
            else:
                insert_float(editor, node, operand, site)
            if old is not None:
                replaced.append(old)
        drop_unused(model, replaced)
        return ir.passes.PassResult(model, modified=bool(self.plan.sites))


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
    scales = weight_scales(operand.numpy(), bits, recipe.weights)
    prefix = f"{site.node}.weight.int{bits}"
    codes = ir.LazyTensor(
        lambda: ir.tensor(weight_codes(operand.numpy(), scales, bits)),
        dtype=ir.DataType.INT8, shape=ir.Shape(site.shape), name=f"{prefix}.codes",
    )  # fmt: skip
    inputs = [
        editor.constant(f"{prefix}.codes", codes),
        editor.constant(f"{prefix}.scale", ir.tensor(scales)),
        editor.constant(f"{prefix}.zero_point", ir.tensor(np.zeros(scales.shape, dtype=np.int8))),
    ]
    axis = {"axis": 1} if scales.ndim else {}
    name = f"{prefix}.DequantizeLinear"
    node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **axis))


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
    codes = ir.LazyTensor(
        lambda: ir.tensor(blocked_weight(operand.numpy()).codes),
        dtype=ir.DataType.UINT8, shape=ir.Shape([columns, blocks, block]), name=f"{prefix}.codes",
    )  # fmt: skip
    inputs = [
        node.inputs[0],
        editor.constant(f"{prefix}.codes", codes),
        editor.constant(f"{prefix}.scale", ir.tensor(blocked_weight(operand.numpy()).scales.reshape(-1))),
    ]
    attributes = {"K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    product = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node.name)
    product.metadata_props.update(node.metadata_props)
    graph, output = editor.model.graph, node.outputs[0]
    graph.insert_before(node, product)
    node.name = f"{site.node}.replaced"
    product.outputs[0].dtype, product.outputs[0].shape = output.dtype, output.shape
    editor.take_over(output, product.outputs[0])
    graph.remove(node, safe=True)
    editor.nodes[site.node] = product
    graph.opset_imports.setdefault("com.microsoft", 1)


def insert_float(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan) -> None:
    """Keep a site in floating point; where the precision differs from the graph's, compute in it.

    Weights of a float16 graph stay stored in float16 and are widened exactly; of a float32 graph, `fp16` stores half.

    Raises:
        GraphError: a weight does not fit float16.
    """
    as_is = Precision.FP16 if operand.dtype is ir.DataType.FLOAT16 else Precision.FP32
    if site.precision is as_is or site.precision is Precision.BF16:
        return
    node = editor.as_matmul(node)
    if site.precision is Precision.FP32:
        editor.widen(node, operand.dtype)
    largest = float(np.abs(operand.numpy()).max())
    if largest > np.finfo(np.float16).max:
        raise GraphError(f"a weight of {largest:.4g} does not fit float16", where=site.key, remedy="keep it in fp32")
    prefix = f"{site.node}.weight.fp16"
    half = ir.LazyTensor(
        lambda: ir.tensor(operand.numpy().astype(np.float16)),
        dtype=ir.DataType.FLOAT16, shape=ir.Shape(site.shape), name=prefix,
    )  # fmt: skip
    cast = editor.add(
        node, "Cast", [editor.constant(prefix, half)], f"{prefix}.Cast", ir.DataType.FLOAT, to=int(ir.DataType.FLOAT)
    )
    node.replace_input_with(1, cast)
