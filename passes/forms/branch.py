"""The outlier branch beside an integer product, in plain nodes: what exceeds its quantizer's range, in float32.

Gather takes the outlier channels, Clip what of them has a code, Sub the rest, which a product with their rows of the
weight brings to the result. Gather, Clip and Sub stand once for all products that read one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spq_graph.documents.changes import Peel
from spq_graph.passes.base.editor import describe_like
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds
from spq_graph.passes.forms.rules import MATMUL, Place, Step, Wanted, producer_of
from spq_graph.passes.numbers.scales import ActivationQuantizer
from spq_graph.terms.errors import GraphError

_ADD = Step("Add", 2)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a weight [K, N] as they are, float32 [k, N]; products that share matrix and channels share them."""

    operand: Operand
    channels: tuple[int, ...]

    def tensor(self) -> ir.TensorProtocol:
        """Read from the source, one by one."""
        operand = self.operand
        stored = operand.weight.stored()
        rows = (stored.T if operand.flipped else stored)[list(self.channels)]
        return ir.tensor(np.ascontiguousarray(operand.weight.cast(rows)))


def branch_steps(wanted: Wanted) -> list[Step]:
    """What stands behind the product: the sum of both branches."""
    return [_ADD] if wanted.peel is not None else []


def add_branch(at: Place, activation: ir.Value | None, result: ir.Value) -> None:
    """Add the overflow of a site's outlier channels to the result of its integer product, where it has such.

    Args:
        at: the site.
        activation: what the quantizer of its activation reads, float32.
        result: of the product, scaled, float32.

    Raises:
        GraphError: the plan names channels that the activation does not have.
    """
    peel, node = at.wanted.peel, result.producer()
    if peel is None or activation is None or node is None:
        return
    if peel.channels[-1] >= at.site.shape[0]:
        raise GraphError(
            f"the outlier branch has channel {peel.channels[-1]}, and the activation {at.site.shape[0]} channels",
            where=at.site.key,
            remedy="make the plan again with `spq-graph plan`",
        )
    editor, name = at.editor, f"{at.site.node}.branch"
    over = _overflow(at, activation, peel)
    key = _Rows(at.operand, peel.channels)
    if key not in editor.stored:
        editor.stored[key] = editor.constant(f"{name}.rows", key.tensor())
    product = ir.node("MatMul", [over, editor.stored[key]], name=editor.fresh(f"{name}.MatMul"))
    total = ir.node("Add", [result, product.outputs[0]], name=editor.fresh(f"{name}.Add"))
    editor.model.graph.insert_after(node, [product, total])
    for added in (product, total):
        added.metadata_props[ADDED] = at.site.node
        describe_like(added.outputs[0], result)
        added.outputs[0].name = editor.fresh(f"{added.name}.out")
    editor.take_over(result, total.outputs[0])
    total.replace_input_with(0, result)


def _overflow(at: Place, activation: ir.Value, peel: Peel) -> ir.Value:
    """What of the outlier channels has no code: x_c - clip(x_c), float32 [..., k]."""
    editor, prefix = at.editor, f"{at.activation}.branch"
    if prefix in editor.shared:
        return editor.shared[prefix]
    channels = editor.constant(f"{prefix}.channels", ir.tensor(np.asarray(peel.channels, dtype=np.int64)))
    low, high = (
        editor.constant(f"{prefix}.{end}", ir.tensor(bound))
        for end, bound in zip(("low", "high"), at.wanted.quantizer.ends, strict=True)
    )
    node, dtype = editor.nodes[at.site.node], ir.DataType.FLOAT
    gathered = editor.add(node, "Gather", [activation, channels], f"{prefix}.Gather", dtype, axis=-1)
    if activation.shape is not None:
        gathered.shape = ir.Shape([*activation.shape[:-1], len(peel.channels)])
    inside = editor.add(node, "Clip", [gathered, low, high], f"{prefix}.Clip", dtype, like=gathered)
    editor.shared[prefix] = editor.add(node, "Sub", [gathered, inside], f"{prefix}.Sub", dtype, like=gathered)
    return editor.shared[prefix]


@dataclass(frozen=True, slots=True)
class _Branch:
    """The nodes of a branch, as far as they are there, from the sum of both branches up."""

    product: ir.Node | None
    sub: ir.Node | None
    clip: ir.Node | None
    gather: ir.Node | None

    @classmethod
    def joining(cls, total: ir.Node) -> _Branch:
        """That whose product an Add adds."""
        product = producer_of(total.inputs[1], "MatMul")
        sub = producer_of(product.inputs[0], "Sub") if product is not None else None
        clip = producer_of(sub.inputs[1], "Clip") if sub is not None else None
        gather = producer_of(clip.inputs[0], "Gather") if clip is not None else None
        return cls(product, sub, clip, gather)


def branch_nodes(result: Sequence[ir.Node]) -> list[ir.Node]:
    """The inserted nodes of the branch that joins what stands behind a product; none where none does."""
    branches = [_Branch.joining(node) for node in result if node.op_type == "Add"]
    nodes = (node for b in branches for node in (b.product, b.sub, b.clip, b.gather))
    return [node for node in nodes if node is not None and ADDED in node.metadata_props]


def differing_branch(
    activation: Sequence[ir.Node], result: Sequence[ir.Node], wanted: Wanted, operand: Operand
) -> str | None:
    """How the branch behind a product differs from the plan's, in words; None where it does not.

    Args:
        activation: what was inserted between the product and what the site reads, from the product on.
        result: what was inserted between the product and what the site gives.
        wanted: what its plan asks for.
        operand: the source's weight.
    """
    peel = wanted.peel
    if peel is None:
        return None  # what would add one is then no step of the form
    branch = _Branch.joining(next(node for node in result if node.op_type == "Add"))
    if branch.product is None:
        return "no MatMul of an outlier branch is added to its product"
    if (text := MATMUL.differs(branch.product)) is not None:
        return f"in its outlier branch stands {text}"
    if not holds(branch.product.inputs[1], _Rows(operand, peel.channels).tensor()):
        return "the rows of its outlier branch are not those of the source's weight"
    quantizing = [node for node in activation if node.op_type in ("QuantizeLinear", "Clip")]
    return _differing_overflow(branch, quantizing[-1].inputs[0], peel, wanted.quantizer)


def _differing_overflow(
    branch: _Branch, activation: ir.Value | None, peel: Peel, quantizer: ActivationQuantizer
) -> str | None:
    """The same of what its product reads; `activation` is what its quantizer does."""
    sub, clip, gather = branch.sub, branch.clip, branch.gather
    if sub is None or clip is None or gather is None:
        return "no Gather, Clip and Sub stand in its outlier branch"
    for step, node in ((Step("Sub", 2), sub), (Step("Clip", 3), clip), (Step("Gather", 2, {"axis": -1}), gather)):
        if (text := step.differs(node)) is not None:
            return f"in its outlier branch stands {text}"
    if sub.inputs[0] is not gather.outputs[0] or gather.inputs[0] is not activation:
        return "its outlier branch reads something else than its quantizer does"
    if not holds(gather.inputs[1], ir.tensor(np.asarray(peel.channels, dtype=np.int64))):
        return "its outlier branch gathers other channels than the plan says"
    if not all(holds(v, ir.tensor(b)) for v, b in zip(clip.inputs[1:], quantizer.ends, strict=True)):
        return "its outlier branch has other bounds than its quantizer"
    return None
