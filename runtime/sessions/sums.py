"""Whether ONNX Runtime may keep the sums of integer products exact where the processor does not by itself."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx

from spq_graph.terms.kernels import EXACT_SUMS

_BLOCK = b"block_size"
# Bytes of a file that is read through at once; a larger one holds weights, and mostly no such attribute.
_SMALL = 1 << 26


def exact_sums(model: str | Path | bytes) -> dict[str, str]:
    """Entries of the session options with which a model's integer products have exact sums on every processor.

    ONNX Runtime 1.31 then makes uint8 of all weights of int8. It gives one zero point to those that lie in blocks, and
    fails when they are dequantized; and of one that is dequantized twice it makes two of the same name.

    Args:
        model: a file, or a serialized model.

    Returns:
        None of them where the model has such weights. Two uses of one weight are not looked for in a file that itself
        holds large ones.
    """
    return {} if _fails(model) else {EXACT_SUMS: "1"}


def keep_exact(options: Any, model: str | Path | bytes) -> None:
    """Add these entries to session options: so a decision is the same on every processor."""
    for name, value in exact_sums(model).items():
        options.add_session_config_entry(name, value)


def _fails(model: str | Path | bytes) -> bool:
    if isinstance(model, bytes):
        return _told(model)
    with Path(model).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return (len(content) <= _SMALL or content.find(_BLOCK) >= 0) and _told(content[:])


def _told(serialized: bytes) -> bool:
    model = onnx.ModelProto.FromString(serialized)
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    found = [node for node in nodes if node.op_type == "DequantizeLinear"]
    codes = Counter(node.input[0] for node in found)
    return any(map(_blocked, found)) or any(codes[tensor.name] > 1 for tensor in model.graph.initializer)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)


def _blocked(node: onnx.NodeProto) -> bool:
    return len(node.input) == 2 and any(one.name == _BLOCK.decode() and one.i for one in node.attribute)
