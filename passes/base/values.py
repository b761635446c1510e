"""The few questions that every pass asks of a value: which constant it is, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Size: TypeAlias = int | ir.SymbolicDim
"""Of one axis of a value."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
SEEN_THROUGH = frozenset({"Cast", "Identity", "Transpose"})
_AT_ONCE = 4 << 20  # bytes that two tensors are compared in
_LONGEST_CHAIN = 64  # so that asking takes the same time in every graph
# What holds every number of a type: a Cast there changes none.
_WIDER = {kind: (kind, ir.DataType.FLOAT) for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)}
_PRODUCTS = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A constant operand: the initializer behind it and the nodes in between, the nearest to the operand last.

    Equal to another that gives the same numbers of the same tensor, whichever nodes make them, and of whichever copy of
    a graph: copies share tensors.
    """

    initializer: ir.Value
    through: tuple[ir.Node, ...]

    @property
    def numbers(self) -> tuple[ir.TensorProtocol, tuple[ir.DataType, ...]]:
        """What tells its numbers, but not how they lie: the tensor, and the types that it is rounded to."""
        kinds = [self.tensor.dtype]
        for node in self.through:
            if node.op_type == "Cast":
                to = _cast_to(node)
                kinds += [] if to in _WIDER.get(kinds[-1], (kinds[-1],)) else [to]
        return self.tensor, tuple(kinds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weight):
            return NotImplemented
        return self.numbers == other.numbers and self.transposed == other.transposed

    def __hash__(self) -> int:
        return hash((self.numbers, self.transposed))

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What the initializer holds."""
        tensor = self.initializer.const_value
        assert tensor is not None
        return tensor

    @property
    def dtype(self) -> ir.DataType:
        """Element type as the operand has it, which a Cast makes another than the stored one."""
        casts = [node for node in self.through if node.op_type == "Cast"]
        return _cast_to(casts[-1]) if casts else self.tensor.dtype

    @property
    def transposed(self) -> bool:
        """Whether an odd number of transpositions lies between the initializer and the operand."""
        return sum(node.op_type == "Transpose" for node in self.through) % 2 == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the operand has it."""
        shape = tuple(int(d) for d in self.tensor.shape.numpy())
        return shape[::-1] if self.transposed else shape

    def numpy(self) -> npt.NDArray[np.float32]:
        """The operand as float32, rounded wherever a Cast in between rounds it."""
        return self.cast(self.stored())

    def stored(self) -> npt.NDArray[Any]:
        """What the initializer holds, in the shape of the operand; a view of the file where it lies in one."""
        array = np.asarray(self.tensor.numpy())
        return array.T if self.transposed else array

    def cast(self, part: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """A part of `stored` as float32, rounded wherever a Cast in between rounds it."""
        for node in self.through:
            if node.op_type == "Cast":
                part = part.astype(_cast_to(node).numpy(), copy=False)
        return part.astype(np.float32, copy=False)


def _cast_to(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def weight_of(value: ir.Value | None) -> Weight | None:
    """The constant behind an operand, seen through Cast, Identity and Transpose; None where there is none."""
    through: list[ir.Node] = []
    while value is not None and len(through) < _LONGEST_CHAIN:
        node = value.producer()
        if node is None:
            return None if value.const_value is None else Weight(value, tuple(reversed(through)))
        if node.op_type not in SEEN_THROUGH or not is_standard(node):
            return None
        if node.op_type == "Transpose" and not _swaps_two(node):
            return None
        through.append(node)
        value = node.inputs[0]
    return None


def _swaps_two(node: ir.Node) -> bool:
    permutation = node.attributes.get("perm")
    return permutation is None or list(permutation.as_ints()) == [1, 0]


def is_standard(node: ir.Node) -> bool:
    """Whether a node is of ONNX's own domain."""
    return node.domain in ("", "ai.onnx")


def holds_codes(value: ir.Value | None) -> bool:
    """Whether a value holds integers or numbers of 8 bits or fewer, as quantized weights do; truth values are none."""
    kind = value.dtype if value is not None else None
    return kind is not None and kind not in FLOATS and kind is not ir.DataType.BOOL


def same_tensor(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether two tensors hold the same bytes; one object, or one place in a file, is not read."""
    if one is other:
        return True
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    if isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor):
        places = [(tensor.path, tensor.offset, tensor.length) for tensor in (one, other)]
        if places[0] == places[1]:
            return True
    if one.dtype is ir.DataType.STRING:
        return bool(np.array_equal(one.numpy(), other.numpy()))
    a, b = _bytes_of(one), _bytes_of(other)
    return all(np.array_equal(a[at : at + _AT_ONCE], b[at : at + _AT_ONCE]) for at in range(0, a.size, _AT_ONCE))


def _bytes_of(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
    """Views where the tensor lies in a file."""
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def holds(value: ir.Value | None, expected: ir.TensorProtocol) -> bool:
    """Whether a value is a constant of this type, shape and content."""
    held = value.const_value if value is not None and value.producer() is None else None
    return held is not None and same_tensor(held, expected)


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, whatever its rank; seen through Cast."""
    weight = weight_of(value)
    if weight is None or weight.tensor.size != 1 or weight.tensor.dtype is ir.DataType.STRING:
        return None
    return float(weight.numpy().reshape(-1)[0])


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is ONNX's own operator of that name."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and is_standard(node) else None


def users_of(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that read a value, each once, in the order of use."""
    yield from dict.fromkeys(use.node for use in value.uses())


def names_in(model: ir.Model) -> set[str]:
    """Every name that a value or a node of the model has, in subgraphs too."""
    names: set[str] = set()
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        names |= {value.name for value in values if value.name}
        names |= {node.name for node in graph if node.name}
    return names


def is_product(node: ir.Node) -> bool:
    """Whether a node is a MatMul or Gemm of ONNX."""
    return node.op_type in _PRODUCTS and is_standard(node)


def is_lookup(node: ir.Node) -> bool:
    """Whether a node takes rows of its first operand."""
    return node.op_type == "Gather" and is_standard(node) and len(node.inputs) > 1 and not attribute_of(node, "axis", 0)


def codes_looked_up(node: ir.Node) -> bool:
    """Whether a node looks rows up in codes by block, [tokens, blocks, block], as our lookups do."""
    codes = node.inputs[0] if node.op_type in ("Gather", "GatherBlockQuantized") and node.inputs else None
    held = codes.const_value if codes is not None else None
    return held is not None and held.dtype not in FLOATS and len(held.shape) == 3


def attribute_of(node: ir.Node, name: str, default: float) -> float:
    """The number that an attribute holds."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def integer_of(node: ir.Node, name: str) -> int | None:
    """An attribute that is an integer; None where it is not there, or something else."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None and attribute.type is ir.AttributeType.INT else None


def axes_of(node: ir.Node) -> list[int]:
    """The axes of a reduction, from a constant operand or an attribute; none where neither tells."""
    operand = weight_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if operand is not None:
        return [int(axis) for axis in operand.numpy().ravel()]
    given = node.attributes.get("axes")
    return list(given.as_ints()) if given is not None else []


def sizes_of(value: ir.Value | None) -> Sequence[Size]:
    """The sizes of a value, as far as they are known: without its rank, of none."""
    return [] if value is None or value.shape is None else list(value.shape)


def all_same(ones: Sequence[Size], others: Sequence[Size]) -> bool:
    """Whether sizes are known to be the same: numbers, or names."""
    return all(a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(ones, others, strict=True))
