"""The operator of our own, spq::Int8MatMul: integer weights, activations quantized as it goes.

Either row by row (spq::Int8MatMulByToken) or by a static range. With an outlier branch, which a static range always
has here, since Q/DQ serves others, it reads the channels and their rows of the weight beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.branch import OTHER_CHANNELS, OTHER_ROWS, BranchRows, channels_of, channels_tensor
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.int8_function import Int8Kind, add_int8_function
from spq_graph.passes.forms.integer import OTHER_QUANTIZER, hold
from spq_graph.passes.forms.rules import FormRules, Place, Wanted
from spq_graph.passes.forms.steps import Step
from spq_graph.passes.forms.storages import Int8Panels
from spq_graph.passes.numbers.int8 import MOST_DEPTH
from spq_graph.terms.errors import GraphError

_NO_BIAS = np.zeros(1, np.float32)


class Int8Operator(FormRules):
    """The operator, and in the file the function that it stands for.

    Args:
        by_token: whether every row of an activation has a scale and a zero point of its own, or all have the plan's.
    """

    def __init__(self, *, by_token: bool) -> None:
        self._by_token = by_token

    def insert(self, at: Place) -> None:
        """Write it.

        Raises:
            GraphError: sums over so many rows do not fit 32 bits, a row of the branch does not fit float16, or the plan
                names channels that the activation does not have.
        """
        rows, _ = at.site.shape
        if rows > MOST_DEPTH:
            raise GraphError(
                f"a weight of {rows:,} rows has sums that 32 bits do not hold",
                where=at.site.key,
                remedy=f'in the recipe: overrides = [{{pattern = "{at.site.key}", precision = "w8a8_block"}}]',
            )
        static = self._static(at)
        at.as_matmul()
        editor = at.editor
        if not self.computes_in(at.operand.dtype):
            at.widen()
        storage = at.known(self.storage(at.wanted, at.operand))
        panels = at.stored(storage, f"{at.weight}.panels")
        scale = at.beside(storage, f"{at.weight}.scale", storage.known_scales)
        name = "spq_graph.no_bias"
        if name not in editor.shared:
            editor.shared[name] = editor.constant(name, ir.Tensor(_NO_BIAS))
        inputs = [at.node.inputs[0], panels, scale, editor.shared[name], *static, *branch_constants(at)]
        kind = self._kind(at.wanted)
        editor.substitute(at.node, kind.op_type, inputs, DOMAIN, self._attributes(at.wanted))
        add_int8_function(editor.model, kind)

    def _static(self, at: Place) -> list[ir.Value]:
        """Scale and zero point of the range, which all products of an activation share; none where rows have theirs."""
        if self._by_token:
            return []
        quantizer, shared = at.wanted.quantizer, at.editor.shared
        for what, number in (("scale", quantizer.scale), ("zero_point", quantizer.zero_point)):
            name = f"{at.activation}.{what}"
            if name not in shared:
                shared[name] = at.editor.constant(name, ir.Tensor(number))
        return [shared[f"{at.activation}.scale"], shared[f"{at.activation}.zero_point"]]

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Symmetric codes in panels."""
        return panels_of(wanted, operand)

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """Whether it adds nothing of its own, and quantizes by the range of the plan."""
        bias, *static = node.inputs[3:6] if len(node.inputs) > 3 else [None]
        if not holds(bias, ir.Tensor(_NO_BIAS)):
            return "its node adds a bias, where the plan asks for none"
        if self._by_token:
            return None
        return None if hold(static, wanted.quantizer.scale, wanted.quantizer.zero_point) else OTHER_QUANTIZER

    def differing_branch(
        self, node: ir.Node, activation: Sequence[ir.Node], result: Sequence[ir.Node], wanted: Wanted, operand: Operand
    ) -> str | None:
        """Whether its channels are the plan's, and their rows the source's."""
        return differing_constants(node.inputs[-2:], wanted, operand)

    def product(self, wanted: Wanted) -> Step:
        """The operator, with panels, their scales and no bias, and channels and rows of a branch."""
        kind = self._kind(wanted)
        return Step(kind.op_type, len(kind.inputs), self._attributes(wanted), DOMAIN)

    def computes_in(self, dtype: ir.DataType) -> bool:
        """It reads and writes float16 itself."""
        return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)

    def _attributes(self, wanted: Wanted) -> dict[str, int]:
        rows, columns = wanted.site.shape
        return {"K": rows, "N": columns}

    def _kind(self, wanted: Wanted) -> Int8Kind:
        return Int8Kind(by_token=self._by_token, branch=wanted.peel is not None)


def panels_of(wanted: Wanted, operand: Operand) -> Int8Panels:
    """How the weight of a product is stored; outlier channels of its branch have the code of zero."""
    return Int8Panels(wanted.in_integers(operand), 7 if wanted.recipe.reduce_range else 8, wanted.recipe.weights)


def branch_constants(at: Place) -> list[ir.Value]:
    """Channels and rows of the branch, where the plan has one there.

    Raises:
        GraphError: a row does not fit float16, or the plan names channels that the activation does not have.
    """
    peel = at.wanted.peel
    if peel is None:
        return []
    channels, rows = channels_of(at, peel), BranchRows(at.operand, peel.channels)
    key = (rows, "halves")
    if key not in at.editor.stored:
        if (tensor := rows.halves()) is None:
            raise GraphError(
                "the rows of its outlier branch hold a weight that does not fit float16",
                where=at.site.key,
                remedy="--no-remedy peel",
            )
        at.editor.stored[key] = at.editor.constant(f"{at.weight}.branch.rows", tensor)
    return [channels, at.editor.stored[key]]


def differing_constants(reads: Sequence[ir.Value | None], wanted: Wanted, operand: Operand) -> str | None:
    """How the last two of what a node reads differ from channels and rows of its plan's branch, in words."""
    peel = wanted.peel
    if peel is None:
        return None
    channels, rows = reads[-2:]
    if not holds(channels, channels_tensor(peel)):
        return OTHER_CHANNELS
    tensor = BranchRows(operand, peel.channels).halves()
    return None if tensor is not None and holds(rows, tensor) else OTHER_ROWS
