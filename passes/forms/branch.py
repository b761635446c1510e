"""The outlier branch beside an integer product, in plain nodes: outlier channels in floating point.

Gather takes the outlier channels, which a product with their rows of the weight brings to the result; the integer
weight has zeros in those rows. Gather stands once for all products that read one value.
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
from spq_graph.passes.forms.rules import Place, Wanted, producer_of
from spq_graph.passes.forms.steps import MATMUL, Step, cast_to
from spq_graph.terms.errors import GraphError

OTHER_CHANNELS = "its outlier branch has other channels than the plan says"
OTHER_ROWS = "the rows of its outlier branch are not those of the source's weight"
_ADD = Step("Add", 2)
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class BranchRows:
    """Rows of a weight [K, N], [k, N]; products that share matrix and channels share them.

    Attributes:
        operand: the source's weight.
        channels: which rows.
    """

    operand: Operand
    channels: tuple[int, ...]

    def halves(self) -> ir.TensorProtocol | None:
        """In float16, which takes half the bytes and rounds a thousandth of what 8 bits do; None where one is beyond.

        Read from the source, one by one.
        """
        rows = self.operand.rows(self.channels)
        if np.abs(rows).max(initial=0.0) > _LARGEST:
            return None
        return ir.Tensor(np.ascontiguousarray(rows.astype(np.float16)))

    def tensor(self) -> ir.TensorProtocol:
        """In float16, and where a number is beyond that, in float32."""
        return self.halves() or ir.Tensor(np.ascontiguousarray(self.operand.rows(self.channels)))


def branch_steps(wanted: Wanted) -> list[Step]:
    """What stands behind the product: the sum of both branches."""
    return [_ADD] if wanted.peel is not None else []


def channels_of(at: Place, peel: Peel) -> ir.Value:
    """The outlier channels as a constant, int64 [k], which all products of an activation share.

    Raises:
        GraphError: the plan names channels that the activation does not have.
    """
    if peel.channels[-1] >= at.site.shape[0]:
        raise GraphError(
            f"the outlier branch has channel {peel.channels[-1]}, and the activation {at.site.shape[0]} channels",
            where=at.site.key,
            remedy="make the plan again with `spq-graph plan`",
        )
    name = f"{at.activation}.branch.channels"
    if name not in at.editor.shared:
        at.editor.shared[name] = at.editor.constant(name, channels_tensor(peel))
    return at.editor.shared[name]


def channels_tensor(peel: Peel) -> ir.TensorProtocol:
    """The outlier channels, int64 [k]."""
    return ir.Tensor(np.asarray(peel.channels, dtype=np.int64))


def add_branch(at: Place, activation: ir.Value | None, result: ir.Value) -> None:
    """Add the outlier channels' part to the result of a site's integer product, where it has such.

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
    editor, name = at.editor, f"{at.site.node}.branch"
    inputs = [_gathered(at, activation, peel), _rows(at, peel)]
    product = ir.node("MatMul", inputs, name=editor.fresh(f"{name}.MatMul"))
    total = ir.node("Add", [result, product.outputs[0]], name=editor.fresh(f"{name}.Add"))
    editor.model.graph.insert_after(node, [product, total])
    for added in (product, total):
        added.metadata_props[ADDED] = at.site.node
        describe_like(added.outputs[0], result)
        added.outputs[0].name = editor.fresh(f"{added.name}.out")
    editor.take_over(result, total.outputs[0])
    total.replace_input_with(0, result)


def _gathered(at: Place, activation: ir.Value, peel: Peel) -> ir.Value:
    """The outlier channels, float32 [..., k]."""
    editor, name = at.editor, f"{at.activation}.branch.Gather"
    if name not in editor.shared:
        inputs = [activation, channels_of(at, peel)]
        found = editor.add(editor.nodes[at.site.node], "Gather", inputs, name, ir.DataType.FLOAT, axis=-1)
        if activation.shape is not None:
            found.shape = ir.Shape([*activation.shape[:-1], len(peel.channels)])
        editor.shared[name] = found
    return editor.shared[name]


def _rows(at: Place, peel: Peel) -> ir.Value:
    """Their rows of the weight, float32 [k, N]; a Cast widens them where the file has them in float16."""
    editor, key, name = at.editor, BranchRows(at.operand, peel.channels), f"{at.site.node}.branch.rows"
    if key not in editor.stored:
        tensor = key.tensor()
        held = editor.constant(name, tensor)
        if tensor.dtype is not ir.DataType.FLOAT:
            to = int(ir.DataType.FLOAT)
            node = editor.nodes[at.site.node]
            held = editor.add(node, "Cast", [held], f"{name}.Cast", ir.DataType.FLOAT, like=held, to=to)
        editor.stored[key] = held
    return editor.stored[key]


@dataclass(frozen=True, slots=True)
class _Branch:
    """The nodes of a branch, as far as they are there, from the sum of both branches up."""

    product: ir.Node | None
    gather: ir.Node | None
    cast: ir.Node | None

    @classmethod
    def joining(cls, total: ir.Node) -> _Branch:
        """That whose product an Add adds."""
        product = producer_of(total.inputs[1], "MatMul")
        if product is None:
            return cls(None, None, None)
        return cls(product, producer_of(product.inputs[0], "Gather"), producer_of(product.inputs[1], "Cast"))


def branch_nodes(result: Sequence[ir.Node]) -> list[ir.Node]:
    """The inserted nodes of the branch that joins what stands behind a product; none where none does."""
    branches = [_Branch.joining(node) for node in result if node.op_type == "Add"]
    nodes = (node for b in branches for node in (b.product, b.gather, b.cast))
    return [node for node in nodes if node is not None and ADDED in node.metadata_props]


def differing_branch(
    activation: Sequence[ir.Node], result: Sequence[ir.Node], wanted: Wanted, operand: Operand
) -> str | None:
    """How the branch behind a product differs from the plan's, in words: see `FormRules.differing_branch`."""
    peel = wanted.peel
    if peel is None:
        return None  # what would add one is then no step of the form
    branch = _Branch.joining(next(node for node in result if node.op_type == "Add"))
    if branch.product is None or branch.gather is None:
        return "no Gather and MatMul of an outlier branch are added to its product"
    for step, node in ((MATMUL, branch.product), (Step("Gather", 2, {"axis": -1}), branch.gather)):
        if (text := step.differs(node)) is not None:
            return f"in its outlier branch stands {text}"
    quantizing = [node for node in activation if node.op_type in ("QuantizeLinear", "Clip")]
    if branch.gather.inputs[0] is not quantizing[-1].inputs[0]:
        return "its outlier branch reads something else than its quantizer does"
    if not holds(branch.gather.inputs[1], channels_tensor(peel)):
        return OTHER_CHANNELS
    return _differing_rows(branch, BranchRows(operand, peel.channels).tensor())


def _differing_rows(branch: _Branch, wanted: ir.TensorProtocol) -> str | None:
    assert branch.product is not None
    held = branch.product.inputs[1]
    if wanted.dtype is not ir.DataType.FLOAT:
        text = cast_to(ir.DataType.FLOAT).differs(branch.cast) if branch.cast is not None else "no Cast of its rows"
        if text is not None or branch.cast is None:
            return f"in its outlier branch stands {text}"
        held = branch.cast.inputs[0]
    return None if holds(held, wanted) else OTHER_ROWS
