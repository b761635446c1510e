"""The operator of our own, spq::Int8MatMulByToken: integer weights, activations quantized row by row as it goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.int8_function import Int8Kind, add_int8_function
from spq_graph.passes.forms.rules import FormRules, Place, Step, Wanted
from spq_graph.passes.forms.storages import Int8Panels
from spq_graph.passes.numbers.int8 import MOST_DEPTH
from spq_graph.terms.errors import GraphError

BY_TOKEN = Int8Kind(by_token=True)
_NO_BIAS = np.zeros(1, np.float32)


class Int8ByToken(FormRules):
    """spq::Int8MatMulByToken, and in the file the function that it stands for."""

    def insert(self, at: Place) -> None:
        """Write it.

        Raises:
            GraphError: sums over so many rows do not fit 32 bits.
        """
        rows, _ = at.site.shape
        if rows > MOST_DEPTH:
            raise GraphError(
                f"a weight of {rows:,} rows has sums that 32 bits do not hold",
                where=at.site.key,
                remedy=f'in the recipe: overrides = [{{pattern = "{at.site.key}", precision = "w8a8_block"}}]',
            )
        at.as_matmul()
        editor = at.editor
        if not self.computes_in(at.operand.dtype):
            at.widen()
        storage = at.known(self.storage(at.wanted, at.operand))
        panels = at.stored(storage, f"{at.weight}.panels")
        scale = at.beside(storage, f"{at.weight}.scale", storage.known_scales)
        name = "spq_graph.no_bias"
        if name not in editor.shared:
            editor.shared[name] = editor.constant(name, ir.tensor(_NO_BIAS))
        inputs = [at.node.inputs[0], panels, scale, editor.shared[name]]
        editor.substitute(at.node, BY_TOKEN.op_type, inputs, DOMAIN, self._attributes(at.wanted))
        add_int8_function(editor.model, BY_TOKEN)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Symmetric codes in panels."""
        return Int8Panels(operand, 7 if wanted.recipe.reduce_range else 8, wanted.recipe.weights)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether it adds nothing of its own."""
        bias = node.inputs[3] if len(node.inputs) > 3 else None
        return None if holds(bias, ir.tensor(_NO_BIAS)) else "its node adds a bias, where the plan asks for none"

    def product(self, wanted: Wanted) -> Step:
        """The operator, with panels, their scales and no bias."""
        return Step(BY_TOKEN.op_type, len(BY_TOKEN.inputs), self._attributes(wanted), DOMAIN)

    def computes_in(self, dtype: ir.DataType) -> bool:
        """It reads and writes float16 itself."""
        return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)

    def _attributes(self, wanted: Wanted) -> dict[str, int]:
        rows, columns = wanted.site.shape
        return {"K": rows, "N": columns}
