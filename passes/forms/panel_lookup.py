"""An embedding's rows out of the panels of a head that is tied to it: spq::Int8Gather, so that both are stored once.

What is looked up is what the head multiplies by: codes times the scale of their row, and in place of those of outlier
channels, whose codes are zero, the numbers of the head's branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN, VERSION
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.gather_function import gather_inputs, gather_name
from spq_graph.passes.forms.int8_operator import branch_constants, differing_constants, panels_of
from spq_graph.passes.forms.rules import Place, Wanted
from spq_graph.passes.forms.steps import Step, cast_to
from spq_graph.passes.forms.storages import Int8Panels


class PanelLookup:
    """Rows of a table in the panels of a head."""

    def insert(self, at: Place) -> None:
        """Write it.

        Raises:
            GraphError: a row of the head's branch does not fit float16, or the plan names channels that there are not.
        """
        head = replace(at, wanted=at.wanted.head)  # what is named after the weight has the names that the head gives it
        editor, step = at.editor, self.step(at.wanted)
        storage = head.known(self.storage(at.wanted, at.operand))
        panels = head.stored(storage, f"{head.weight}.panels")
        scale = head.beside(storage, f"{head.weight}.scale", storage.known_scales)
        inputs = [panels, at.node.inputs[1], scale, *branch_constants(head)]
        editor.substitute(at.node, step.op_type, inputs, step.domain, dict(step.attributes))
        editor.model.graph.opset_imports.setdefault(DOMAIN, VERSION)
        node = editor.nodes[at.site.node]
        for behind in self.chain(at.operand):
            shape, node.outputs[0].type = node.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
            node = editor.behind(node, behind.op_type, [], at.operand.dtype, **behind.attributes)
            node.outputs[0].shape = shape

    def step(self, wanted: Wanted) -> Step:
        """The operator."""
        channels, rows = wanted.site.shape[1], wanted.site.shape[0]
        branch = wanted.head.peel is not None
        return Step(gather_name(branch=branch), len(gather_inputs(branch=branch)), {"K": channels, "N": rows}, DOMAIN)

    def chain(self, operand: Operand) -> list[Step]:
        """What stands behind it, in this order."""
        return [] if operand.dtype is ir.DataType.FLOAT else [cast_to(operand.dtype)]

    def storage(self, wanted: Wanted, operand: Operand) -> Int8Panels:
        """How the head stores the table."""
        return panels_of(wanted.head, operand)

    def differing_branch(self, reads: Sequence[ir.Value | None], wanted: Wanted, operand: Operand) -> str | None:
        """How the head's branch, as a lookup in a file reads it, differs from the plan's, in words."""
        return differing_constants(reads, wanted.head, operand)
