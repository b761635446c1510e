"""How a lookup of tokens differs from what its plan and its source ask for, and which nodes belong to it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.check.outline import Line, line_of
from spq_graph.passes.check.surroundings import Belonging, behind
from spq_graph.passes.forms.differs import unlike_stored
from spq_graph.passes.forms.lookup import LOOKUPS, Behind, by_row, fused_step
from spq_graph.passes.forms.panel_lookup import PanelLookup
from spq_graph.passes.forms.rules import Wanted
from spq_graph.passes.forms.steps import Step
from spq_graph.passes.forms.storages import Blocks

_BY_ROW, _ROWS = Step("Reshape", 2), Step("Gather", 2, {"axis": 0})


def differing_lookup(
    node: ir.Node, wanted: Wanted, operand: Operand, line: Line, axes: int, belonging: Belonging
) -> str | None:
    """Hold a lookup against its plan, from the coarse to the fine; what belongs to it is collected on the way.

    Args:
        node: that looks up.
        wanted: what its plan asks for.
        operand: the source's table.
        line: the node as it was.
        axes: of its ids.
        belonging: is added to.

    Returns:
        What is wrong, in words; None where nothing is.
    """
    form = LOOKUPS[wanted.form]
    if isinstance(form, PanelLookup):
        return _differing_panels(node, form, wanted, operand, line, belonging)
    storage = Blocks(operand, wanted.size)
    text = fused_step(storage).differs(node) if form.fused else _unlike_before(node, line)
    if text is not None:
        return f"its lookup is {text}"
    ids, chain = node.inputs[1], behind(node, line)
    if (text := _unlike_ends(node, chain, line)) is not None:
        return text
    inserted = [node, *chain]
    rows = node.inputs[2] if form.fused else chain[2].inputs[1] if len(chain) > 2 else None
    if not form.fused:
        picked = _inserted(rows)
        if picked is None or _ROWS.differs(picked) is not None or picked.inputs[1] is not ids:
            return "the scales of its rows are not looked up as the rows are"
        inserted.append(picked)
        rows = picked.inputs[0]
    shaped = _inserted(rows)
    if shaped is None or _BY_ROW.differs(shaped) or not holds(shaped.inputs[1], ir.Tensor(by_row(storage))):
        return "the scales of its table are not brought into rows"
    for part in (*inserted, shaped):
        belonging.add(part)
    return _unlike_chain(chain, form.chain(operand, storage, axes)) or unlike_stored(
        node.inputs[0], shaped.inputs[0], storage, lambda held: held.scales
    )


def _differing_panels(
    node: ir.Node, form: PanelLookup, wanted: Wanted, operand: Operand, line: Line, belonging: Belonging
) -> str | None:
    """The same of a lookup in the panels of a head."""
    if (text := form.step(wanted).differs(node)) is not None:
        return f"its lookup is {text}"
    chain = behind(node, line)
    for part in (node, *chain):
        belonging.add(part)
    return (
        _unlike_ends(node, chain, line)
        or _unlike_chain(chain, [Behind(step, (), operand.dtype) for step in form.chain(operand)])
        or unlike_stored(node.inputs[0], node.inputs[2], form.storage(wanted, operand), lambda held: held.scales)
        or form.differing_branch(node.inputs, wanted, operand)
    )


def _unlike_ends(node: ir.Node, chain: list[ir.Node], line: Line) -> str | None:
    """How the ids that a lookup reads, or what it gives, differ from what they were."""
    if (ids := node.inputs[1]) is None or ids.name != line.reads[1]:
        return f"it looks up {ids.name if ids is not None else 'nothing'}, and did {line.reads[1]}"
    given = chain[-1].outputs[0] if chain else node.outputs[0]
    if (given.name, given.dtype) != (line.gives[0], line.types[0] or given.dtype):
        return f"it gives {given.name} ({given.dtype}), and gave {line.gives[0]} ({line.types[0]})"
    return None


def _unlike_before(node: ir.Node, line: Line) -> str | None:
    """How a Gather differs from what it was, apart from what it reads and gives."""
    now = line_of(node)
    return None if (now.operator, now.attributes) == (line.operator, line.attributes) else f"another {node.op_type}"


def _inserted(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and ADDED in node.metadata_props else None


def _unlike_chain(chain: list[ir.Node], expected: list[Behind]) -> str | None:
    """How what stands behind a lookup differs from what its form has there."""
    if len(chain) != len(expected):
        return f"{len(chain)} nodes stand behind it, where its form has {len(expected)}"
    for node, wanted in zip(chain, expected, strict=True):
        if (text := wanted.step.differs(node)) is not None:
            return f"behind it stands {text}"
        reads = zip(node.inputs[1:], wanted.reads, strict=True)
        if not all(array is None or holds(value, ir.Tensor(np.asarray(array))) for value, array in reads):
            return f"behind it stands {node.name} with other constants than its form has"
    return None
