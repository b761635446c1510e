"""What the inputs of a decoder take, where their names and shapes alone do not say it.

ONNX Runtime tells names, types and declared shapes. What is left open there (the width of a cache that an exporter
declared as a symbol, lengths that a fused attention reads) is read from the attention operators of the graph.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import CONTRIB

# By operator of com.microsoft: its inputs with past keys and values, and of packed queries how many parts they have.
_PASTS = {"GroupQueryAttention": (3, 4), "MultiHeadAttention": (6, 7)}
_LAST, _TOTAL = 5, 6  # inputs of GroupQueryAttention: tokens before the last one by row, and tokens of the longest row
_WIDEST = 1 << 20  # heads, channels or tokens
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "MatMulNBits"})


@dataclass(slots=True)
class AttentionFacts:
    """What fused attention says of a graph's inputs.

    Attributes:
        widths: channels of a head, by input that holds past keys or values.
        last: inputs that take, for each row, how many tokens stand before its last one.
        total: inputs that take how many tokens the longest row has.
        windows: tokens that attention looks back, by input of a cache that holds its latest tokens only, in a buffer
            whose length stays as it was given.
        right_padding: whether it takes the first tokens of a row for its text, so that padding can only follow it.
    """

    widths: dict[str, int] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)
    total: set[str] = field(default_factory=set)
    windows: dict[str, int] = field(default_factory=dict)
    right_padding: bool = False


def empty_past(
    name: str, shape: Sequence[int | str | None], rows: int, dtype: type[np.generic], width: int | None, room: int = 0
) -> npt.NDArray[np.generic]:
    """Keys or values of no token: [rows, heads, 0, width], or keys and values as one, [2, rows, heads, 0, width].

    Args:
        name: of the input.
        shape: as the graph declares it.
        rows: how many sequences.
        dtype: element type.
        width: channels of a head, where the shape leaves that open.
        room: tokens that the buffer holds, where it is not to grow.

    Raises:
        GraphError: the shape is absent, leaves open what nothing else tells, or has room for a fixed number of tokens.
    """
    if not shape:
        raise GraphError(
            f"cache '{name}' states no shape", remedy="export the model again with the shapes of its inputs"
        )
    sizes = [d if isinstance(d, int) else None for d in shape]
    batch = max(0, len(sizes) - 4)
    sizes[batch] = rows if sizes[batch] is None else sizes[batch]
    if len(sizes) > 3 and sizes[-1] is None:
        sizes[-1] = width
    if any(size is not None and not 0 <= size <= _WIDEST for size in sizes):
        raise GraphError(
            f"cache '{name}' has the shape {list(shape)}", remedy="export the model again with the sizes that it has"
        )
    open_axes = [axis for axis, size in enumerate(sizes) if size is None]
    if len(open_axes) > 1:
        left = ", ".join(str(shape[axis]) for axis in open_axes)
        raise GraphError(
            f"cache '{name}' does not say how many heads and channels it has ({left} are all free)",
            remedy="export the model again with these sizes as numbers: only batch and length may be free",
        )
    if not open_axes and sizes[-2]:
        raise GraphError(
            f"cache '{name}' holds room for a fixed number of {sizes[-2]} tokens",
            remedy="export the model again with a free past length, or without a cache",
        )
    return np.zeros([room if size is None else size for size in sizes], dtype)


def attention_facts(path: Path) -> AttentionFacts:
    """Read what the attention operators of a file say; external data is not touched."""
    if not _mentions(path, _PASTS):
        return AttentionFacts()
    graph = onnx.load(path, load_external_data=False).graph
    reader = _Reader(graph)
    facts = AttentionFacts()
    for node in graph.node:
        if node.op_type not in _PASTS or node.domain != CONTRIB:
            continue
        for source in reader.pasts(node):
            if (width := reader.width_of_head(node)) is not None:
                facts.widths[source] = width
        if node.op_type == "GroupQueryAttention":
            facts.right_padding = True
            facts.windows |= reader.windows(node)
            facts.last |= {name for name in [reader.source_of(node, _LAST)] if name}
            facts.total |= {name for name in [reader.source_of(node, _TOTAL)] if name}
    return facts


def _mentions(path: Path, words: Iterable[str]) -> bool:
    """Whether any of these words lies in a file: a file with its weights inside is not parsed for nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(word.encode()) >= 0 for word in words)


class _Reader:
    """Questions about the nodes around an attention.

    Args:
        graph: as it lies in the file.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._inputs = {value.name for value in graph.input}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self._last_axes = {
            value.name: value.type.tensor_type.shape.dim[-1].dim_value
            for value in (*graph.value_info, *graph.input, *graph.output)
            if value.type.tensor_type.shape.dim
        }

    def source_of(self, node: onnx.NodeProto, slot: int) -> str | None:
        """The graph's input that a node reads, seen through moves of data; None where it reads something computed."""
        name = node.input[slot] if len(node.input) > slot else ""
        while (before := self._producers.get(name)) is not None and before.op_type in _MOVES:
            name = before.input[0]
        return name if name in self._inputs else None

    def pasts(self, node: onnx.NodeProto) -> list[str]:
        """The graph's inputs with an attention's past keys and values."""
        return [name for slot in _PASTS[node.op_type] if (name := self.source_of(node, slot)) is not None]

    def windows(self, node: onnx.NodeProto) -> dict[str, int]:
        """How far back an attention looks, by input of its cache, where that holds no more."""
        numbers = {a.name: a.i for a in node.attribute}
        kept = self.pasts(node) if numbers.get("sliding_window_cache") else []
        return dict.fromkeys(kept, numbers.get("local_window_size", 0))

    def width_of_head(self, node: onnx.NodeProto) -> int | None:
        """Channels of a head: what the attention returns, or what the product behind it takes, through its heads."""
        heads = next((a.i for a in node.attribute if a.name == "num_heads"), 0)
        channels = self._last_axes.get(node.output[0]) or next(self._taken_behind(node.output[0]), 0)
        return channels // heads if heads and channels else None

    def _taken_behind(self, name: str, depth: int = 6) -> Iterator[int]:
        """Rows of the weights of the products that follow a value."""
        for node in self._users.get(name, []) if depth else []:
            numbers = {a.name: a.i for a in node.attribute}
            if node.op_type not in _PRODUCTS:
                yield from self._taken_behind(node.output[0], depth - 1)
            elif "K" in numbers:
                yield numbers["K"]
            elif shape := self._weight_behind(node.input[1]):
                yield shape[-1 if numbers.get("transB") else 0]

    def _weight_behind(self, name: str) -> list[int]:
        flipped = False
        while (node := self._producers.get(name)) is not None and node.input:
            flipped ^= node.op_type == "Transpose"
            name = node.input[0]
        shape = self._weights.get(name, [])
        return shape[::-1] if flipped else shape


def positions(mask: npt.NDArray[np.int64], new: int, axes: int) -> npt.NDArray[np.int64]:
    """Positions of the last `new` tokens, [rows, new]; with one axis alone, those of a row without padding, [new]."""
    if axes == 1:
        return np.arange(mask.shape[1] - new, mask.shape[1])
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -new:]


def number_feed(
    name: str, mask: npt.NDArray[np.int64], shape: Sequence[int | str | None], facts: AttentionFacts
) -> npt.NDArray[np.int64] | None:
    """What an input of numbers takes: lengths (see `AttentionFacts`), or of how many tokens logits are wanted.

    None for any other input.
    """
    if name in facts.last:
        return _shaped(mask.sum(axis=1) - 1, shape)
    if name in facts.total:
        return _shaped(np.array([mask.shape[1]]), shape)
    if name in ("num_logits_to_keep", "logits_to_keep"):
        return _shaped(np.array([0]), shape)  # which means all of them
    return None


def _shaped(numbers: npt.NDArray[np.int64], shape: Sequence[int | str | None]) -> npt.NDArray[np.int64]:
    """Numbers with as many axes as are declared."""
    return numbers.reshape([-1, *[1] * (len(shape) - 1)] if shape else ())
