"""Weights in 8 bits by block: com.microsoft.MatMulNBits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.rules import FormRules, Place, Wanted
from spq_graph.passes.forms.steps import Step
from spq_graph.passes.forms.storages import Blocks
from spq_graph.passes.numbers.scales import block_size_for
from spq_graph.terms.form import Form
from spq_graph.terms.targets import CONTRIB

# On a CPU, MatMulNBits rounds activations to int8 by block at level 4, the only one with a fast kernel: one scale for
# each block of one token, so that a spike costs its own block only. At level 1 they stay in float32.
ACCURACY_LEVELS: Mapping[Form, int] = {Form.NBITS: 4, Form.NBITS_FLOAT: 1}


@dataclass(frozen=True, slots=True)
class NBits(FormRules):
    """MatMulNBits.

    Attributes:
        level: its accuracy_level.
    """

    level: int

    def insert(self, at: Place) -> None:
        """Write it."""
        at.as_matmul()
        at.widen()
        editor = at.editor
        storage = at.known(self.storage(at.wanted, at.operand))
        codes = at.stored(storage, f"{at.weight}.codes")
        inputs = [at.node.inputs[0], codes, at.beside(storage, f"{at.weight}.scale", storage.known_scales)]
        editor.substitute(at.node, "MatMulNBits", inputs, CONTRIB, self._attributes(at.wanted))
        editor.model.graph.opset_imports.setdefault(CONTRIB, 1)

    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """Codes by block, around 128."""
        return Blocks(operand, wanted.size)

    def product(self, wanted: Wanted) -> Step:
        """The operator, with codes and scales."""
        return Step("MatMulNBits", 3, self._attributes(wanted), CONTRIB)

    def _attributes(self, wanted: Wanted) -> dict[str, int]:
        rows, columns = wanted.site.shape
        block = wanted.size or block_size_for(rows)
        return {"K": rows, "N": columns, "bits": 8, "block_size": block, "accuracy_level": self.level}
