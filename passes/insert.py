"""Insert what a plan decided, in the form that its target executes.

For ONNX Runtime to run a site as one integer kernel on a CPU, activations are unsigned and quantized at inputs only,
weights are signed and symmetric, and all products that read one value share one quantizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.errors import GraphError, SpqError
from spq_graph.passes.editor import Editor, Operand, drop_unused
from spq_graph.passes.encode import half_weight
from spq_graph.passes.forms import (
    ACCURACY_LEVELS,
    AS_IS,
    dequantized,
    half_of,
    insert_computed,
    insert_fp8_pair,
    insert_matmul_integer,
    insert_weight,
    is_as_it_was,
    nbits_attributes,
    quantized,
    quantizer_of,
    stored,
)
from spq_graph.passes.fp8 import WEIGHTS
from spq_graph.passes.operator import DOMAIN, OP, Fp8Call, add_function
from spq_graph.plan import Plan, SitePlan
from spq_graph.recipe import Precision, Recipe
from spq_graph.targets import Form


class InsertPrecisions(ir.passes.InPlacePass):
    """Give every site of a plan its precision in the form of the plan's target; nothing else is touched.

    Args:
        plan: what was decided.
        emulate: write what ONNX Runtime's CPU provider can run where it cannot run the target's form, with the same
            quantizers: for measuring what a plan for another device costs, never for delivery.

    Calling it raises GraphError where a site of the plan is not in the graph, or cannot take its precision.
    """

    def __init__(self, plan: Plan, *, emulate: bool = False) -> None:
        super().__init__()
        self.plan = plan
        self.emulate = emulate

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
        recipe = self.plan.recipe
        if is_as_it_was(site, operand):
            return
        form = recipe.profile.forms[site.precision]
        if form is Form.QDQ and site.precision.is_fp8:
            insert_fp8_pair(editor, node, operand, site, recipe, emulate=self.emulate)
        elif form is Form.QDQ or (form is Form.MATMUL_INTEGER and self.emulate):
            insert_integer(editor, node, operand, site, recipe, emulate=self.emulate)
        elif form is Form.MATMUL_INTEGER:
            insert_matmul_integer(editor, node, operand, site, recipe)
        elif form in ACCURACY_LEVELS:
            insert_nbits(editor, node, operand, site, recipe)
        elif form is Form.OPERATOR:
            insert_fp8(editor, node, operand, site, recipe)
        elif form is Form.WEIGHT:
            insert_weight(editor, node, operand, site, recipe, emulate=self.emulate)
        elif form is Form.COMPUTED:
            insert_computed(editor, node, operand, site, emulate=self.emulate)
        else:
            insert_float(editor, node, operand, site)


def require_opset(model: ir.Model, plan: Plan) -> None:
    """Check that the graph's opset can say what the plan wants.

    Raises:
        GraphError: the opset is too old.
    """
    opset, oldest = model.graph.opset_imports.get("", 1), plan.recipe.profile.oldest_opset
    if opset < oldest and any(site.precision.bits is not None for site in plan.sites):
        raise GraphError(
            f"the graph has opset {opset}, where DequantizeLinear has no scale per channel",
            remedy=f"export the model again with opset {oldest} or later",
        )


def insert_integer(
    editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe, *, emulate: bool = False
) -> None:
    """Put QuantizeLinear and DequantizeLinear in front of both operands of a site.

    Raises:
        GraphError: the plan holds no range for the activation.
    """
    quantizer = quantizer_of(site, recipe, emulate=emulate)
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    prefix = f"{site.input}.{site.precision}"
    node.replace_input_with(0, dequantized(editor, node, prefix, quantized(editor, node, prefix, quantizer)))
    prefix = f"{site.node}.weight.{site.precision}"
    codes, scales = stored(editor, f"{prefix}.codes", operand, site, recipe)
    inputs = [
        codes,
        editor.constant(f"{prefix}.scale", ir.tensor(scales)),
        editor.constant(f"{prefix}.zero_point", ir.tensor(np.zeros(scales.shape, dtype=np.int8))),
    ]
    axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
    name = f"{prefix}.DequantizeLinear"
    node.replace_input_with(1, editor.add(node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **axis))
    editor.shield(node)


def insert_nbits(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe) -> None:
    """Replace a product by com.microsoft.MatMulNBits: weights in 8 bits by block, activations as the level has them."""
    node = editor.as_matmul(node)
    editor.widen(node, operand.dtype)
    prefix = f"{site.node}.weight.{site.precision}"
    codes, scales = stored(editor, f"{prefix}.codes", operand, site, recipe)
    inputs = [node.inputs[0], codes, editor.constant(f"{prefix}.scale", ir.tensor(scales))]
    attributes = nbits_attributes(site, recipe.profile.forms[site.precision])
    editor.substitute(node, "MatMulNBits", inputs, "com.microsoft", attributes)
    editor.model.graph.opset_imports.setdefault("com.microsoft", 1)


def insert_fp8(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan, recipe: Recipe) -> None:
    """Replace a product by spq::Fp8MatMul: weights in FP8, activations rounded to FP8 or as they are.

    Raises:
        GraphError: the plan holds no range for an activation that is to be rounded, or the weight is not finite.
    """
    call = Fp8Call.of(site, recipe)
    node = editor.as_matmul(node)
    if operand.dtype is not ir.DataType.FLOAT16:  # which the operator reads and writes itself
        editor.widen(node, operand.dtype)
    prefix = f"{site.node}.weight.{WEIGHTS.name}"
    panels, scales = stored(editor, f"{prefix}.panels", operand, site, recipe)
    name = f"{site.input}.{site.precision}.scale" if call.rounds else "spq_graph.no_scale"
    if name not in editor.shared:
        editor.shared[name] = editor.constant(name, ir.tensor(call.a_scale))
    inputs = [node.inputs[0], panels, editor.constant(f"{prefix}.scale", ir.tensor(scales)), editor.shared[name]]
    editor.substitute(node, OP, inputs, DOMAIN, call.attributes)
    add_function(editor.model)


def insert_float(editor: Editor, node: ir.Node, operand: Operand, site: SitePlan) -> None:
    """Keep a site in floating point; where the precision differs from the graph's, compute in it.

    Weights of a graph in half precision stay stored in it and are widened exactly; of a float32 graph, `fp16` stores
    half.

    Raises:
        GraphError: a weight does not fit float16.
    """
    node = editor.as_matmul(node)
    half = half_of(site, operand)
    if site.precision is Precision.FP32:
        editor.widen(node, half)
    prefix = f"{site.node}.weight.{AS_IS[half]}"
    weight = half_weight(operand, half, site.key).tensor(prefix, site.key)
    to = operand.dtype if site.precision is not Precision.FP32 else ir.DataType.FLOAT
    cast = editor.add(node, "Cast", [editor.constant(prefix, weight)], f"{prefix}.Cast", to, to=int(to))
    node.replace_input_with(1, cast)
