"""Which value projection makes what an attention gives: it mixes positions, and leaves every channel on its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.heads import is_by_head, unrepeated
from spq_graph.passes.base.operand import operand_of
from spq_graph.passes.base.values import attribute_of, is_standard, made_by, sizes_of, users_of, weight_of
from spq_graph.terms.absorber import Heads
from spq_graph.terms.targets import CONTRIB

_SIZES = frozenset({"Shape", "Size"})  # what reads no number of a value
_JOINED = (-2, 2)  # the axis of positions of [batch, heads, length, size]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A value projection, and how its channels become those of what attention gives.

    Attributes:
        product: of the projection.
        bias: what is added to its result, [N]; None for nothing.
        adding: the node that adds it: the product, or the one behind it.
        heads: of the query, and of the values; each of these is shared by as many of those, one behind the other.
    """

    product: ir.Node
    bias: ir.Value | None
    adding: ir.Node
    heads: Heads


@dataclass(frozen=True, slots=True)
class _Operator:
    """Where an attention operator has what concerns values.

    Attributes:
        heads: names of the attributes that count heads of the query, and of the values.
        past: input that holds the values of earlier tokens.
        others: inputs from here on, or at these places, that may change values: then nothing is known of them.
    """

    heads: tuple[str, str]
    past: int
    others: Iterable[int] = ()


_PRESENT = 2  # output that holds the values of all tokens, of each of them
_VALUE = 2  # input
_OPERATORS = {
    ("", "Attention"): _Operator(("q_num_heads", "kv_num_heads"), 5),
    (CONTRIB, "GroupQueryAttention"): _Operator(("num_heads", "kv_num_heads"), 4, range(12, 32)),
    (CONTRIB, "MultiHeadAttention"): _Operator(("num_heads", "num_heads"), 7, (3,)),
}


def mixed_by(value: ir.Value, products: Collection[ir.Node]) -> Mixed | str | None:
    """The value projection behind an activation that attention gives, with heads side by side.

    Every step in between must be known to keep channels apart, and be read by the next one alone: scaling a channel of
    the projection then scales that of the activation, and nothing else. A cache is scaled with it: what went out of the
    graph as the values of earlier tokens comes in again.

    Args:
        value: the activation, [..., heads * size].
        products: of the graph.

    Returns:
        Why there is none, in words, where attention gives the activation; None where something else does.
    """
    node = value.producer()
    operator = _operator_of(node) if node is not None else None
    if node is not None and operator is not None and value is node.outputs[0]:
        query, shared = (int(attribute_of(node, name, 0)) for name in operator.heads)
        return _of_operator(node, operator, (query, shared), products)
    merge = made_by(value, "Reshape")
    turn = made_by(merge.inputs[0], "Transpose") if merge is not None else None
    core = turn.inputs[0].producer() if turn is not None and turn.inputs[0] is not None else None
    if merge is None or turn is None or core is None or not is_by_head(turn):
        return None
    operator = _operator_of(core)
    if operator is None and not (core.op_type == "MatMul" and is_standard(core)):
        return None
    if not (_read_by(core.outputs[0], turn) and _read_by(turn.outputs[0], merge)):
        return f"what {core.name} gives is read otherwise as well"
    if operator is None:
        return _written_out(core, products)
    return _of_operator(core, operator, (_heads_of(core.outputs[0]), 0), products)


def _operator_of(node: ir.Node) -> _Operator | None:
    return _OPERATORS.get(("" if is_standard(node) else node.domain, node.op_type))


def _of_operator(node: ir.Node, operator: _Operator, heads: Heads, products: Collection[ir.Node]) -> Mixed | str:
    inputs = dict(enumerate(node.inputs))
    values = inputs.get(_VALUE)
    if values is None:
        return f"{node.name} takes query, key and value in one"
    if any(inputs.get(at) is not None for at in operator.others):
        return f"{node.name} changes values before it mixes them"
    present = node.outputs[_PRESENT] if len(node.outputs) > _PRESENT else None
    if present is not None and present.uses():
        return f"the values that {node.name} mixes are read otherwise as well"
    return _not_continued(node, inputs.get(operator.past), present) or _projected(values, node, heads, products)


def _written_out(mix: ir.Node, products: Collection[ir.Node]) -> Mixed | str:
    """Of the last product of an attention that is written out, probabilities times values."""
    values, reader, few = mix.inputs[1], mix, None
    if values is not None and (few := unrepeated(values)) is not None:
        for _ in ("Reshape", "Expand", "Unsqueeze"):
            node = values.producer() if values is not None else None
            if node is None or not _read_by(values, reader):
                return f"the values that {mix.name} mixes are read otherwise as well"
            values, reader = node.inputs[0], node
    repeated = _heads_of(mix.inputs[1] if few is not None else mix.outputs[0])
    joined = made_by(values, "Concat")
    if values is not None and joined is not None:
        if len(joined.inputs) != 2 or attribute_of(joined, "axis", 0) not in _JOINED:
            return f"{joined.name} joins values otherwise than along their positions"
        if (why := _not_continued(joined, joined.inputs[0], values)) is not None:
            return why
        if not _read_by(values, reader, given=True):
            return f"the values that {mix.name} mixes are read otherwise as well"
        values, reader = joined.inputs[1], joined
    return _projected(values, reader, (repeated, 0), products)


def _projected(values: ir.Value | None, reader: ir.Node, heads: Heads, products: Collection[ir.Node]) -> Mixed | str:
    """The product that makes new values, by head or with heads side by side, for one reader.

    Args:
        values: that are read, [batch, heads, length, size] or [batch, length, heads * size].
        reader: what reads them.
        heads: of the query, and of the values as far as the reader says; 0 for what the graph does not say.
        products: of the graph.
    """
    why = f"no projection makes the values of {reader.name} alone, and for nothing else"
    turn, (query, shared), size = made_by(values, "Transpose"), heads, 0
    if turn is not None:
        split = made_by(turn.inputs[0], "Reshape")
        if split is None or not is_by_head(turn):
            return why
        if not (_read_by(values, reader, given=True) and _read_by(turn.inputs[0], turn)):
            return why
        values, reader, (shared, size) = split.inputs[0], split, _parted(split)
        if shared > 1:  # a product of as many heads; one alone could serve several
            query = query or shared
    bias, added = None, made_by(values, "Add")
    constants = [v for v in added.inputs if weight_of(v) is not None] if added is not None else []
    if added is not None and len(constants) == 1 and _read_by(values, reader):
        bias = constants[0]
        values, reader = next(v for v in added.inputs if v is not bias), added
    product = values.producer() if values is not None else None
    if product is None or product not in products or not _read_by(values, reader):
        return why
    own = product.inputs[2] if len(product.inputs) > 2 else None
    if own is not None and bias is not None:
        return f"{product.name} and {reader.name} both add a bias"
    found = Mixed(product, own if bias is None else bias, product if bias is None else reader, (query, shared))
    return _fitting(found, size if turn is not None else None)


def _fitting(found: Mixed, size: int | None) -> Mixed | str:
    """Itself, where its sizes are what its heads say; `size` is that of a head, where the graph parts them."""
    operand, (query, shared) = operand_of(found.product), found.heads
    columns = operand.shape[1] if operand is not None else 0
    counted = shared > 0 < query and columns > 0 and query % shared == 0 and columns % shared == 0
    if not counted or size not in (None, columns // shared):
        return f"the graph does not say how many heads share the values that {found.product.name} makes"
    held = weight_of(found.bias) if found.bias is not None else None
    if found.bias is not None and (held is None or held.through or held.tensor.size != columns):
        return f"the bias of {found.product.name} is no constant for each channel"
    return found


def _not_continued(node: ir.Node, past: ir.Value | None, present: ir.Value | None) -> str | None:
    """Why values of earlier tokens would not be scaled as new ones are, in words; None where they would."""
    if past is None:
        return None
    given = past.producer() is None and past.const_value is None  # by whoever runs the graph
    if given and _read_by(past, node) and present is not None and present.is_graph_output():
        return None
    return f"the values of earlier tokens that {node.name} reads are not those that the graph gave"


def _read_by(value: ir.Value | None, reader: ir.Node, *, given: bool = False) -> bool:
    """Whether a node alone reads a value's numbers; where it is a cache, whoever runs the graph may be given it too."""
    if value is None or (value.is_graph_output() and not given):
        return False
    return all(node is reader or node.op_type in _SIZES for node in users_of(value))


def _heads_of(value: ir.Value | None) -> int:
    """How many heads a value [batch, heads, length, size] has; 0 where the graph does not say."""
    sizes = sizes_of(value)
    return sizes[1] if len(sizes) == 4 and isinstance(sizes[1], int) else 0


def _parted(split: ir.Node) -> tuple[int, int]:
    """Heads and their size, where a Reshape makes [batch, length, heads, size]; 0 for what the graph does not say."""
    target = weight_of(split.inputs[1])
    sizes = sizes_of(split.outputs[0]) if target is None else [int(size) for size in target.numpy().reshape(-1)]
    heads, size = sizes[2:] if len(sizes) == 4 else (0, 0)
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else (0, 0)
