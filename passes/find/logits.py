"""Which output of a graph holds logits, told by what feeds it: a product onto the vocabulary.

Neither a name nor a size says so: hidden states go by any name, and may be as wide as the vocabulary. What an output is
computed from by moves of data, scaling and sums is followed back to products with a constant weight, and to whatever
else there is: a norm, an activation or the residual stream, of which hidden states come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from spq_graph.passes.base.marks import is_int8_gather
from spq_graph.passes.base.values import FLOATS, codes_looked_up, is_product, is_standard, weight_of
from spq_graph.passes.find.collect import QUANTIZED_LINEAR
from spq_graph.passes.find.tables import comes_from, ids_of
from spq_graph.terms.kernels import GATHERS
from spq_graph.terms.logits import Logits
from spq_graph.terms.targets import CONTRIB

# What comes out of these is what their first input holds.
_MOVES = frozenset({"Cast", "Identity", "Slice", "Reshape", "Gather", "GatherND", "Squeeze", "Unsqueeze", "Transpose"})
_MOVES |= {"Expand", "Flatten", "Clip", "Softmax", "LogSoftmax", "Tanh", "Split", "Pad", "Dropout", "Neg"}
_MOVES |= {"ScatterND", "ScatterElements", "DequantizeLinear", "QuantizeLinear"}
_SUMS = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Min", "Max", "Where"})
_LINEAR = frozenset({"FusedMatMul", "Einsum", "Conv", "FusedGemm"}) | QUANTIZED_LINEAR
_OPAQUE = frozenset({"If", "Loop", "Scan"})
_HIDDEN = ("hidden", "embed", "pool", "encod", "feature", "represent")
_MOST = 64  # nodes followed back, so that asking takes the same time in every graph; a head has a few
_PADDED = 2  # a vocabulary is padded to less than so many times its size


@dataclass(frozen=True, slots=True)
class _Table:
    """The embedding of tokens: how many, into how many channels, and the initializer."""

    rows: int
    width: int | None
    initializer: ir.Value | None


@dataclass(frozen=True, slots=True)
class _Product:
    """A product that an output is computed from: channels out and in, where known, and its weight's initializer."""

    width: int | None
    inner: int | None
    initializer: ir.Value | None


@dataclass(slots=True)
class _Origin:
    """What an output is computed from.

    Attributes:
        products: with a constant weight.
        opaque: whether a custom operator or a subgraph is among it, of which nothing is known.
        other: whether anything else is, of which hidden states come.
    """

    products: list[_Product] = field(default_factory=list)
    opaque: bool = False
    other: bool = False


def find_logits(model: ir.Model) -> Logits:
    """Find the output that holds logits; one named so before others.

    The graph should have been through `Canonicalize`. Nothing is changed.
    """
    graph = model.graph
    table = _embedding(graph)
    outputs = [v for v in graph.outputs if _may_be(v)]
    for value in sorted(outputs, key=lambda v: v.name != "logits"):
        origin = _origin(value)
        if _are_logits(value, origin, table):
            sizes = [_channels(value), table.rows if table is not None else None]
            return Logits(value.name, min((size for size in sizes if size), default=None))
    told = ", ".join(f"'{v.name}'{_of_channels(v)}" for v in outputs[:3]) or "it has no output of numbers"
    no_head = (
        f"{told} {'come' if len(outputs) > 1 else 'comes'} from no product onto the vocabulary" if outputs else told
    )
    return Logits(None, table.rows if table is not None else None, no_head)


def _may_be(value: ir.Value) -> bool:
    name = value.name or ""
    return (value.dtype is None or value.dtype in FLOATS) and not name.startswith(("present", "past"))


def _channels(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None


def _of_channels(value: ir.Value) -> str:
    channels = _channels(value)
    return f" ({channels} channels)" if channels is not None else ""


def _are_logits(value: ir.Value, origin: _Origin, table: _Table | None) -> bool:
    name = (value.name or "").lower()
    hidden, named = any(word in name for word in _HIDDEN), "logit" in name
    fitting = [product for product in origin.products if _fits(product, table, hidden=hidden, named=named)]
    only = not origin.other and len(fitting) == len(origin.products)
    if origin.opaque and not origin.other and len(fitting) == len(origin.products):
        size = _channels(value)
        if table is None or size is None or named:
            return named and (table is None or size is None or _in_vocabulary(size, table))
        return size == table.rows != table.width and not hidden
    # As many channels as tokens, which the hidden states have not: no sum brings these together with anything else.
    certain = any(table and p.width == table.rows and table.rows not in (p.inner, table.width) for p in fitting)
    return bool(fitting) and (only or certain)


def _fits(product: _Product, table: _Table | None, *, hidden: bool, named: bool) -> bool:
    """Whether a product is one onto the vocabulary.

    Args:
        product: that an output is computed from.
        table: the embedding, where one was found.
        hidden: whether the output's name says that it holds hidden states.
        named: whether it says that it holds logits.
    """
    width, inner = product.width, product.inner
    if table is None:
        return named or (not hidden and width is not None and inner is not None and width > inner)
    if product.initializer is not None and product.initializer is table.initializer:
        return True
    if width is None:
        return named
    if width == table.rows:
        return not hidden or width not in (inner, table.width)
    return _in_vocabulary(width, table) and (named or (not hidden and width not in (inner, table.width)))


def _in_vocabulary(size: int | None, table: _Table | None) -> bool:
    """Whether so many channels are the embedding's tokens, one of the two padded, as tools do for speed."""
    return size is not None and table is not None and table.rows < _PADDED * size and size < _PADDED * table.rows


def _origin(value: ir.Value) -> _Origin:
    found = _Origin()
    _follow(value, found, set())
    return found


def _follow(value: ir.Value, found: _Origin, seen: set[ir.Node]) -> None:
    """Follow a value back, and note where it comes from."""
    pending: list[ir.Value] = [value]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            found.other = True  # an input of the graph, or a table that something is looked up in
        elif node not in seen:
            seen.add(node)
            if len(seen) > _MOST:
                found.other = True
                return
            pending += _behind(node, found, seen)


def _behind(node: ir.Node, found: _Origin, seen: set[ir.Node]) -> list[ir.Value]:
    """What is to be followed behind a node; what ends there is noted."""
    if (product := _product(node)) is not None:
        found.products.append(product)
    elif node.op_type == "Concat" and is_standard(node):
        _note_parts(node, found, seen)
    elif is_standard(node) and node.op_type in _SUMS:
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
        return [v for v in operands if v is not None and not _is_constant(v)]
    elif node.op_type in _MOVES and node.inputs and node.inputs[0] is not None:
        return [node.inputs[0]]
    elif node.op_type in _OPAQUE or not (is_standard(node) or node.domain == CONTRIB):
        found.opaque = True
    else:
        found.other = True
    return []


def _note_parts(node: ir.Node, found: _Origin, seen: set[ir.Node]) -> None:
    """Products side by side, as a wide head is written in parts, count as one."""
    parts, values = _Origin(), [v for v in node.inputs if v is not None and not _is_constant(v)]
    for value in values:
        _follow(value, parts, seen)
    widths = [product.width for product in parts.products if product.width is not None]
    if widths and len(widths) == len(parts.products) == len(values) and not parts.opaque:
        parts.products = [_Product(sum(widths), parts.products[0].inner, None)]
    found.products += parts.products
    found.opaque |= parts.opaque
    found.other |= parts.other


def _product(node: ir.Node) -> _Product | None:
    """A product with a constant weight, whoever's operator it is; None for any other node."""
    unknown = not is_standard(node) and node.domain != CONTRIB
    if not node.outputs or not (is_product(node) or node.op_type in _LINEAR or unknown):
        return None
    weights = [weight for value in node.inputs if (weight := _matrix(value)) is not None]
    if not weights and "N" not in node.attributes:
        return None
    numbers = {name: a.as_int() for name, a in node.attributes.items() if a.type is ir.AttributeType.INT}
    shape = weights[0].shape if weights else (None, None)
    inner, width = shape[::-1] if numbers.get("transB") else shape
    out = _channels(node.outputs[0])
    width, inner = numbers.get("N", width), numbers.get("K", inner)
    if unknown and out is not None:  # nor is it known how its weight lies
        width, inner = out, next((size for size in shape if size != out), out)
    return _Product(width, inner, weights[0].initializer if weights else None)


def _matrix(value: ir.Value | None) -> _Weight | None:
    """The matrix that a value is, stored or quantized; None for anything else."""
    transposed = False
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("DequantizeLinear", "Cast", "Identity", "Transpose") or not node.inputs:
            return None
        transposed ^= node.op_type == "Transpose"
        value = node.inputs[0]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    rows, columns = (int(size) for size in value.const_value.shape.numpy())
    return _Weight((columns, rows) if transposed else (rows, columns), value)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A matrix: its shape as it is used, and the initializer."""

    shape: tuple[int, int]
    initializer: ir.Value


def _is_constant(value: ir.Value, depth: int = 4) -> bool:
    """Whether a value follows from constants alone, or is the scale that a tensor was quantized with."""
    if weight_of(value) is not None:
        return True
    node = value.producer()
    if node is None or depth == 0 or node.op_type in ("DynamicQuantizeLinear", "ConstantOfShape"):
        return node is not None and depth > 0
    # What shape a constant is brought into may come from anywhere.
    inputs = node.inputs[:1] if node.op_type in ("Expand", "Reshape") else node.inputs
    return all(v is None or _is_constant(v, depth - 1) for v in inputs)


def _embedding(graph: ir.Graph) -> _Table | None:
    """The table that token ids are looked up in; the largest, where there are several."""
    return max(_tables(graph), key=lambda table: table.rows, default=None)


def _tables(graph: ir.Graph) -> Iterator[_Table]:
    ids = ids_of(graph)
    for node in graph:
        table, index = _LOOKUPS.get(node.op_type, (0, 0))
        if table == index or len(node.inputs) <= max(table, index) or not comes_from(node.inputs[index], ids):
            continue
        if is_int8_gather(node) and (panels := node.inputs[table]) is not None:
            yield _Table(int(node.attributes["N"].value), int(node.attributes["K"].value), panels)
        elif codes_looked_up(node) and (codes := node.inputs[table]) is not None and codes.const_value is not None:
            yield _Table(int(codes.const_value.shape.numpy()[0]), None, codes)
        elif (found := _matrix(node.inputs[table])) is not None:
            plain = node.op_type != "GatherBlockQuantized"  # which packs several channels into a byte
            yield _Table(found.shape[0], found.shape[1] if plain else None, found.initializer)


_LOOKUPS = {"EmbedLayerNormalization": (2, 0)} | dict.fromkeys({"Gather", "GatherBlockQuantized"} | GATHERS, (0, 1))
