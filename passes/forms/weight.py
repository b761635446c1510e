"""A weight that stands alone in 8 bits, behind DequantizeLinear; the activation stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.fp8_pair import around_weight, codes_of, insert_weight
from spq_graph.passes.forms.rules import Around, FormRules, Place, Wanted
from spq_graph.passes.forms.steps import dequantize
from spq_graph.passes.forms.storages import Integers, SignedBlocks
from spq_graph.passes.numbers.scales import block_size_for

BLOCKED_OPSET = 21  # the first whose DequantizeLinear takes blocks


def block_of(wanted: Wanted) -> int | None:
    """Rows of K that share a scale of a weight that stands alone; None for one scale for each output channel."""
    rows, _ = wanted.site.shape
    block = block_size_for(rows)
    return block if wanted.opset >= BLOCKED_OPSET and rows % block == 0 else None


class IntegerWeight(FormRules):
    """Int8 codes, with a scale for each block of K where the opset has blocks and K is made of whole ones."""

    def insert(self, at: Place) -> None:
        """Write it."""
        at.as_matmul()
        at.widen()
        storage = at.known(self.storage(at.wanted, at.operand))
        codes = at.stored(storage, f"{at.weight}.codes")
        inputs = [codes, at.beside(storage, f"{at.weight}.scale", storage.known_scales)]
        name, attributes = f"{at.weight}.DequantizeLinear", _attributes(at.wanted)
        value = at.editor.add(at.node, "DequantizeLinear", inputs, name, ir.DataType.FLOAT, **attributes)
        at.node.replace_input_with(1, value)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """By block, or by output channel."""
        return SignedBlocks(operand) if block_of(wanted) else Integers(operand, 8)

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """DequantizeLinear on the weight."""
        return self.widened(Around([], [dequantize(2, **_attributes(wanted))], []), operand)


def _attributes(wanted: Wanted) -> dict[str, Any]:
    block = block_of(wanted)
    return {"axis": 0, "block_size": block} if block else {"axis": 1}


@dataclass(frozen=True, slots=True)
class Fp8Weight(FormRules):
    """E4M3 codes.

    Attributes:
        widened_weight: whether Cast and Mul stand in for DequantizeLinear.
    """

    widened_weight: bool = False

    def insert(self, at: Place) -> None:
        """Write it."""
        at.as_matmul()
        at.widen()
        insert_weight(at, self.storage(at.wanted, at.operand), widened=self.widened_weight)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """E4M3 codes."""
        return codes_of(wanted, operand)

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """What dequantizes the weight."""
        return self.widened(Around([], around_weight(wanted, widened=self.widened_weight), []), operand)
