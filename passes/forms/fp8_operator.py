"""The operator of our own, spq::Fp8MatMul: weights in FP8, activations rounded to FP8 or as they are."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN, OP
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.fp8_function import Fp8Call, add_function
from spq_graph.passes.forms.rules import FormRules, Place, Wanted
from spq_graph.passes.forms.steps import Step, attributes_of
from spq_graph.passes.forms.storages import Fp8Panels
from spq_graph.passes.numbers.fp8 import WEIGHTS


class Fp8Operator(FormRules):
    """spq::Fp8MatMul, and in the file the function that it stands for."""

    def insert(self, at: Place) -> None:
        """Write it."""
        call = Fp8Call.of(at.wanted)
        at.as_matmul()
        editor = at.editor
        if not self.computes_in(at.operand.dtype):
            at.widen()
        prefix = f"{at.site.node}.weight.{WEIGHTS.name}"
        storage = at.known(self.storage(at.wanted, at.operand))
        panels = at.stored(storage, f"{prefix}.panels")
        name = f"{at.activation}.scale" if call.rounds else "spq_graph.no_scale"
        if name not in editor.shared:
            editor.shared[name] = editor.constant(name, ir.Tensor(call.a_scale))
        scale = at.beside(storage, f"{prefix}.scale", storage.known_scales)
        inputs = [at.node.inputs[0], panels, scale, editor.shared[name]]
        editor.substitute(at.node, OP, inputs, DOMAIN, call.attributes)
        add_function(editor.model)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """E4M3 codes in panels."""
        return Fp8Panels(operand, wanted.recipe.weights)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether it calls the operator as range and shape ask for."""
        call = Fp8Call.of(wanted)
        if attributes_of(node) != call.attributes:
            return "its node has other attributes than the plan asks for"
        scale = node.inputs[3] if len(node.inputs) == 4 else None
        if not holds(scale, ir.Tensor(call.a_scale)):
            return "its activation has another scale than its range asks for"
        return None

    def product(self, wanted: Wanted) -> Step:
        """The operator, with panels, their scales and that of the activation."""
        return Step(OP, 4, Fp8Call.of(wanted).attributes, DOMAIN)

    def computes_in(self, dtype: ir.DataType) -> bool:
        """It reads and writes float16 itself."""
        return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
