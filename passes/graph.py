"""Reading, checking and normalizing ONNX graphs, and the few questions every pass asks of a value."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, TopologicalSortPass

from spq_graph.errors import GraphError, SourceError

# What only shows in a graph that somebody has quantized already.
QUANTIZED_OPS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "ConvInteger",
    "MatMulNBits", "MatMulBnb4", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QMoE",
})  # fmt: skip
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def load_graph(path: Path) -> ir.Model:
    """Read an ONNX file; weights stay memory-mapped, the file is never written to.

    Raises:
        SourceError: not a readable ONNX file, or its external data is missing, cut short or outside its folder.
        GraphError: the graph is empty, or refers to values that nothing produces.
    """
    if not path.is_file():
        raise SourceError("no such file", where=str(path))
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise SourceError(
            f"this is not a valid ONNX file ({type(cause).__name__})",
            where=str(path),
            remedy="it may be cut short by a broken copy or download; export it again",
        ) from cause
    if not len(model.graph) or not model.graph.outputs:
        raise GraphError("the graph is empty", where=str(path), remedy="export the model again")
    _check_external(model, path)
    _check_links(model, path)
    return model


def _check_external(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            # The name as written decides: a link inside the folder (a model cache has them) is the owner's business.
            location = Path(tensor.location)
            if location.is_absolute() or ".." in location.parts:
                raise SourceError(
                    f"weight '{value.name}' lies outside of the model's folder ({tensor.location})",
                    where=str(path),
                    remedy="external data must lie beside the model; save it again with relative paths",
                )
            data = folder / location
            if not data.is_file():
                raise SourceError(
                    f"external data '{tensor.location}' is missing (weight '{value.name}')",
                    where=str(path),
                    remedy="copy it beside the .onnx file",
                )
            if (tensor.offset or 0) + (tensor.length or tensor.nbytes) > data.stat().st_size:
                raise SourceError(
                    f"external data '{tensor.location}' is cut short (weight '{value.name}' reaches beyond its end)",
                    where=str(path),
                    remedy="copy it again",
                )


def _check_links(model: ir.Model, path: Path) -> None:
    graph = model.graph
    known = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise GraphError(
                    f"node '{node.name}' reads '{value.name}', which nothing produces",
                    where=str(path),
                    remedy="the graph is invalid; export it again",
                )


def files_of(path: Path) -> list[Path]:
    """The ONNX file and the external data that it refers to, in the order of their names."""
    locations = {
        str(value.const_value.location)
        for graph in ir.load(path).graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return [path, *(path.parent / location for location in sorted(locations))]


def digest_of(path: Path) -> str:
    """sha256 over the ONNX file and its external data."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Refuse a graph that is quantized already.

    Raises:
        GraphError: naming what was found.
    """
    found = Counter(node.op_type for node in model.graph.all_nodes() if node.op_type in QUANTIZED_OPS)
    if found:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        raise GraphError(
            f"this graph is quantized already ({what})",
            where=str(path),
            remedy="start from the floating-point model; `spq-graph inspect` shows what is in this one",
        )


class Canonicalize(ir.passes.InPlacePass):
    """Bring a graph into the form that the other passes expect.

    Model-local functions are inlined, Constant nodes lifted to initializers, nodes sorted, and every node gets a
    unique name, since plans refer to nodes by name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        if model.functions:
            modified |= InlinePass()(model).modified
        modified |= LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified
        modified |= TopologicalSortPass()(model).modified
        taken: set[str] = set()
        for index, node in enumerate(model.graph):
            name = node.name or f"{node.op_type}_{index}"
            unique, copies = name, 1
            while unique in taken:
                unique, copies = f"{name}_{copies}", copies + 1
            taken.add(unique)
            if node.name != unique:
                node.name = unique
                modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant operand: the initializer behind it and the nodes in between, the nearest to the operand last."""

    initializer: ir.Value
    through: tuple[ir.Node, ...]

    @property
    def transposed(self) -> bool:
        """Whether an odd number of transpositions lies between the initializer and the operand."""
        return sum(node.op_type == "Transpose" for node in self.through) % 2 == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the operand has it."""
        tensor = self.initializer.const_value
        assert tensor is not None
        shape = tuple(int(d) for d in tensor.shape.numpy())
        return shape[::-1] if self.transposed else shape

    def numpy(self) -> npt.NDArray[np.float32]:
        """The operand as float32."""
        tensor = self.initializer.const_value
        assert tensor is not None
        array = np.asarray(tensor.numpy()).astype(np.float32, copy=False)
        return array.T if self.transposed else array


_SEEN_THROUGH = frozenset({"Cast", "Identity", "Transpose"})


def weight_of(value: ir.Value | None) -> Weight | None:
    """The constant behind an operand, seen through Cast, Identity and Transpose; None where there is none."""
    through: list[ir.Node] = []
    while value is not None:
        if value.const_value is not None and value.producer() is None:
            return Weight(value, tuple(reversed(through)))
        node = value.producer()
        if node is None or node.op_type not in _SEEN_THROUGH or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Transpose" and not _swaps_two(node):
            return None
        through.append(node)
        value = node.inputs[0]
    return None


def _swaps_two(node: ir.Node) -> bool:
    permutation = node.attributes.get("perm")
    return permutation is None or list(permutation.as_ints()) == [1, 0]


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, whatever its rank."""
    if value is None or value.const_value is None:
        return None
    tensor = value.const_value
    return float(tensor.numpy().reshape(-1)[0]) if tensor.size == 1 else None


def users_of(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that read a value, each once, in the order of use."""
    yield from dict.fromkeys(use.node for use in value.uses())


def strip_exporter_noise(model: ir.Model) -> None:
    """Drop metadata that carries local paths or repeats the exporter's internals."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        for key in [k for k in node.metadata_props if "stack_trace" in k or "fx_node" in k or "class_hierarchy" in k]:
            del node.metadata_props[key]
