"""An embedding's table in 8 bits by block: com.microsoft.GatherBlockQuantized, or the same in plain nodes.

Codes and scales lie as MatMulNBits reads them, so that a head that is tied to the table shares both. What is looked up
is (code - 128) * scale in float32, rounded once, in either form; a graph in half precision rounds that again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.panel_lookup import PanelLookup
from spq_graph.passes.forms.rules import Place
from spq_graph.passes.forms.steps import Step, cast_to
from spq_graph.passes.forms.storages import Blocks
from spq_graph.terms.form import Form
from spq_graph.terms.site import Role
from spq_graph.terms.targets import CONTRIB

CENTRE = np.float32(128)  # the code of zero


class Behind(NamedTuple):
    """A node behind a lookup: what it is, what it reads besides (None for the scales of the rows), what it gives."""

    step: Step
    reads: tuple[npt.NDArray[Any] | np.float32 | None, ...]
    gives: ir.DataType


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of a table in 8 bits.

    Attributes:
        fused: whether one operator looks them up and dequantizes them.
    """

    fused: bool

    def insert(self, at: Place) -> None:
        """Write it.

        Raises:
            GraphError: the table is not finite.
        """
        editor, ids = at.editor, at.node.inputs[1]
        storage = at.known(Blocks(at.operand, at.wanted.size))
        codes = at.stored(storage, f"{at.weight}.codes")
        scales, node = _scales(at, storage), at.node
        if self.fused:
            step = fused_step(storage)
            editor.substitute(node, step.op_type, [codes, ids, scales], step.domain, dict(step.attributes))
            editor.model.graph.opset_imports.setdefault(CONTRIB, 1)
            node = editor.nodes[at.site.node]
        else:
            node.replace_input_with(0, codes)
            scales = editor.add(node, "Gather", [scales, ids], f"{at.weight}.rows", ir.DataType.FLOAT, axis=0)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT if self.fused else storage.dtype)
        axes, shape = axes_of(ids), node.outputs[0].shape
        node.outputs[0].shape = None
        for behind in self.chain(at.operand, storage, axes):
            others = [scales if array is None else _constant(at, array) for array in behind.reads]
            node = editor.behind(node, behind.step.op_type, others, behind.gives, **behind.step.attributes)
        node.outputs[0].shape = shape

    def chain(self, operand: Operand, storage: Blocks, axes: int) -> list[Behind]:
        """What stands behind the lookup, in this order.

        Args:
            operand: the table.
            storage: how it is stored.
            axes: of the ids.
        """
        single, (channels, _) = ir.DataType.FLOAT, operand.shape
        _, blocks, block = storage.shape
        found: list[Behind] = []
        if not self.fused:
            found.append(Behind(cast_to(single), (), single))
            found += [Behind(Step("Sub", 2), (CENTRE,), single), Behind(Step("Mul", 2), (None,), single)]
        flat = np.array([*[0] * axes, blocks * block], dtype=np.int64)
        found.append(Behind(Step("Reshape", 2), (flat,), single))
        if channels != blocks * block:  # what fills the last block is cut off
            start, end, axis = (np.array([number], dtype=np.int64) for number in (0, channels, axes))
            found.append(Behind(Step("Slice", 4), (start, end, axis), single))
        if operand.dtype is not single:
            found.append(Behind(cast_to(operand.dtype), (), operand.dtype))
        return found


LOOKUPS: Mapping[Form, Lookup | PanelLookup] = {
    Form.LOOKUP: Lookup(fused=True),
    Form.LOOKUP_NODES: Lookup(fused=False),
    Form.LOOKUP_PANELS: PanelLookup(),
}


def tied_to(plan: Plan, operands: Mapping[str, Operand]) -> dict[str, SitePlan]:
    """By key of a lookup, a head that reads its table in 8 bits, by block or by token: the two are stored once.

    Args:
        plan: what was decided.
        operands: the source's weights and tables, by node.
    """
    rows = {s.key: s.precision.row for s in plan.sites}
    ends = [s for s in plan.sites if (rows[s.key].by_block or rows[s.key].by_token) and s.node in operands]
    heads = {operands[s.node]: s for s in ends if s.role is not Role.EMBEDDING}
    tables = [s for s in ends if s.role is Role.EMBEDDING]
    return {s.key: heads[operands[s.node]] for s in tables if operands[s.node] in heads}


def fused_step(storage: Blocks) -> Step:
    """The operator that looks up and dequantizes: rows of codes [tokens, blocks, block], by scales [.., blocks, 1]."""
    attributes = {"bits": 8, "block_size": storage.block, "gather_axis": 0, "quantize_axis": 2}
    return Step("GatherBlockQuantized", 3, attributes, CONTRIB)


def by_row(storage: Blocks) -> npt.NDArray[np.int64]:
    """The shape that the scales, stored in one row as MatMulNBits has them, are brought into."""
    return np.array([*storage.shape[:2], 1], dtype=np.int64)


def axes_of(ids: ir.Value | None) -> int:
    """How many axes the ids have, which was seen to when the lookup was found."""
    assert ids is not None
    assert ids.shape is not None
    return len(ids.shape)


def _scales(at: Place, storage: Blocks) -> ir.Value:
    """The scales of a table by its rows; lookups of one table share them."""
    flat = at.beside(storage, f"{at.weight}.scale", storage.known_scales)
    name = f"{flat.name}.by_row"
    if name not in at.editor.shared:
        reads = [flat, _constant(at, by_row(storage))]
        at.editor.shared[name] = at.editor.add(at.node, "Reshape", reads, name, ir.DataType.FLOAT)
    return at.editor.shared[name]


def _constant(at: Place, array: npt.NDArray[Any] | np.float32) -> ir.Value:
    """A small constant, once for all that read it."""
    name = f"spq_graph.{array.dtype}.{'_'.join(map(str, np.ravel(array).tolist()))}"
    if name not in at.editor.shared:
        at.editor.shared[name] = at.editor.constant(name, ir.Tensor(np.asarray(array)))
    return at.editor.shared[name]
