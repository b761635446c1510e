"""Put ONNX's own RotaryEmbedding in the place of rotary position embedding written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.editor import drop_unused
from spq_graph.passes.base.replace import add_constant, replace_by
from spq_graph.passes.base.values import all_same, attribute_of, is_standard, made_by, scalar_of, sizes_of, weight_of
from spq_graph.passes.canon.lift_old import opset_of

ROTARY_OPSET = 23  # the first that has the operator
_HEADS_AXIS = 1
_SAME_NUMBER = frozenset({"Cos", "Sin", "Cast", "Identity"})  # equal numbers become equal numbers


class FuseRotary(CanonicalPass):
    """Replace x * cos + turned(x) * sin by one RotaryEmbedding.

    Rotary position embedding (Su et al., arXiv 2104.09864, equation 34) in the order of GPT-NeoX, which LLaMA's
    exporters write: turned(x) is the second half of x, negated, and the first. Seven nodes for each of query and key
    become one. The operator takes half of the cosines: where it cannot be told that both halves of them are the same,
    as where the graph is of an opset before 23, all stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if opset_of(model) < ROTARY_OPSET:
            return ir.passes.PassResult(model, modified=False)
        halves: dict[ir.Value, ir.Value] = {}
        modified = False
        for node in list(model.graph):
            turn = _turn_of(node)
            if turn is None:
                continue
            caches = [_half_of(model.graph, value, halves) for value in (turn.cosines, turn.sines)]
            before = [value for value in node.inputs if value is not None]
            rotary = ir.node("RotaryEmbedding", [turn.x, *caches], name=node.name, metadata_props=node.metadata_props)
            replace_by(model.graph, node, [rotary])
            drop_unused(model, before)
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A rotary embedding written out.

    Attributes:
        x: [batch, heads, length, size].
        cosines: [batch, length, size], both halves the same.
        sines: likewise.
    """

    x: ir.Value
    cosines: ir.Value
    sines: ir.Value


def _turn_of(total: ir.Node) -> _Turn | None:
    """The rotary embedding whose last node is a sum, if it is one that the operator can take over."""
    if total.op_type != "Add" or not is_standard(total) or total.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    for straight, crossed in (total.inputs, total.inputs[::-1]):
        ones, others = made_by(straight, "Mul"), made_by(crossed, "Mul")
        if ones is None or others is None:
            continue
        for turned, sines in _orders(others):
            x = _turned(turned)
            for kept, cosines in _orders(ones):
                if x is not None and kept is x:
                    of_cosines, of_sines = _by_position(x, cosines), _by_position(x, sines)
                    return None if of_cosines is None or of_sines is None else _Turn(x, of_cosines, of_sines)
    return None


def _orders(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    one, other = node.inputs
    if one is not None and other is not None:
        yield one, other
        yield other, one


def _turned(value: ir.Value) -> ir.Value | None:
    """What a value is the second half of, negated, and the first."""
    joined = made_by(value, "Concat")
    negated = made_by(joined.inputs[0], "Neg") if joined is not None and len(joined.inputs) == 2 else None
    if joined is None or negated is None or attribute_of(joined, "axis", 0) not in (-1, 3):
        return None
    second, first = _half(negated.inputs[0]), _half(joined.inputs[1])
    same = second is not None and first is not None and second[0] is first[0]
    return first[0] if same and first is not None and second is not None and (first[1], second[1]) == (0, 1) else None


def _half(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Of which value of rank 4 this is a half of the last axis, and which."""
    node = value.producer() if value is not None else None
    x = node.inputs[0] if node is not None and node.op_type in ("Slice", "Split") and is_standard(node) else None
    size = x.shape[3] if x is not None and x.shape is not None and len(x.shape) == 4 else None
    if value is None or node is None or x is None or not isinstance(size, int) or size % 2:
        return None
    if node.op_type == "Split":
        sizes = weight_of(node.inputs[1]) if len(node.inputs) > 1 else None
        even = len(node.outputs) == 2 and (sizes is None or sizes.numpy().tolist() == [size / 2, size / 2])
        return (x, node.outputs.index(value)) if even and attribute_of(node, "axis", 0) in (-1, 3) else None
    start, end, axis = (scalar_of(node.inputs[at]) if len(node.inputs) > at else None for at in (1, 2, 3))
    step = scalar_of(node.inputs[4]) if len(node.inputs) > 4 else 1
    if start is None or end is None or axis not in (-1, 3) or step != 1:
        return None
    first, last = (min(bound + size if bound < 0 else bound, size) for bound in (start, end))
    return {(0, size / 2): (x, 0), (size / 2, size): (x, 1)}.get((first, last))


def _by_position(x: ir.Value, factor: ir.Value) -> ir.Value | None:
    """Cosines or sines, [batch, length, size], that a factor of all heads is made of.

    None where the operator would not read them as the product did.
    """
    spread = made_by(factor, "Unsqueeze")
    plain = spread.inputs[0] if spread is not None else None
    if spread is None or plain is None or scalar_of(spread.inputs[1]) != _HEADS_AXIS:
        return None
    batch, _, length, size = sizes_of(x)
    given = sizes_of(plain)
    same = len(given) == 3 and all_same(given, [batch, length, size])
    return plain if same and plain.dtype is ir.DataType.FLOAT and _repeats(plain) else None


def _repeats(value: ir.Value | None) -> bool:
    """Whether the two halves of the last axis are the same numbers, as far as the graph tells."""
    while (node := value.producer() if value is not None else None) is not None and is_standard(node):
        if node.op_type == "Concat":
            axes = (-1, len(node.outputs[0].shape or ()) - 1)
            twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
            return twice and attribute_of(node, "axis", 0) in axes
        if node.op_type == "Gather":
            table = weight_of(node.inputs[0])
            return table is not None and not attribute_of(node, "axis", 0) and _two_halves(table.numpy())
        numbers = [at for at, operand in enumerate(node.inputs) if scalar_of(operand) is not None]
        if node.op_type in ("Mul", "Div") and len(numbers) == 1:
            value = node.inputs[1 - numbers[0]]
        elif node.op_type in _SAME_NUMBER:
            value = node.inputs[0]
        else:
            return False
    return False


def _two_halves(table: np.ndarray) -> bool:
    half = table.shape[-1] // 2
    return table.ndim == 2 and np.array_equal(table[:, :half], table[:, half:])


def _half_of(graph: ir.Graph, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value:
    """The first half of the last axis of cosines or sines, cut once for all layers."""
    if value not in halves:
        maker = value.producer()
        assert maker is not None
        assert value.shape is not None
        size = value.shape[2]
        assert isinstance(size, int)
        bounds = [
            add_constant(graph, f"{value.name}.half.{name}", ir.Tensor(np.asarray([number], np.int64)))
            for name, number in (("start", 0), ("end", size // 2), ("axis", 2))
        ]
        cut = ir.node("Slice", [value, *bounds], name=f"{maker.name}.half")
        cut.outputs[0].name, cut.outputs[0].type = f"{value.name}.half", value.type
        cut.outputs[0].shape = ir.Shape([*value.shape[:2], size // 2])
        graph.insert_after(maker, cut)
        halves[value] = cut.outputs[0]
    return halves[value]
