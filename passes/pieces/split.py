"""Cut a graph into consecutive pieces whose weights each fit a limit, so that one at a time can run.

Where a piece ends, what later pieces need of it is handed over. Cuts fall where that is least, which in a decoder is
between two layers. What costs next to nothing is never handed over but computed again where it is needed: whatever
follows from constants alone, or from the graph's inputs and small constants (masks, positions, rotary angles), and the
Q/DQ pairs in front of a product, which the runtime fuses only where it sees them with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
import onnx
import onnx_ir as ir

from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import is_standard
from spq_graph.passes.pieces.cutter import Cutter, Piece, widened
from spq_graph.passes.pieces.tokenwise import is_tokenwise
from spq_graph.passes.pieces.wide import PartWide
from spq_graph.terms.segment import Handed, Segment, Segmented, Spec, Weight

SMALLEST_LIMIT, LARGEST_LIMIT = 128 << 20, 256 << 20
# What a segment may hold of constants for the sake of what it computes again.
LIGHT_SHARE = 64
_EMBEDDED = 1024
# By operator, the attribute that it has where heads lie in one axis.
_HEADS = {"Attention": "q_num_heads", "RotaryEmbedding": "num_heads"}


def split(model: ir.Model, where: Path, limit: int | None = None) -> Segmented:
    """Cut a model into segments whose weights take at most `limit` bytes, or that hold a single node.

    The model must have been through `Canonicalize`. Products that alone exceed the limit are parted in it, but where
    the weight is mapped from its file and takes no memory of the session's; beyond that it is not changed, and must
    stay as it is while segments are used. Time is linear in the number of nodes.

    Args:
        model: the model.
        where: the file that it was read from; weights in files are read from that file's folder.
        limit: bytes of weights in a session; None for those of the largest tensor in float32, within 128 and 256 MiB.
    """
    limit = limit or limit_for(model.graph)
    folder = where.resolve()
    run(model, [PartWide(limit, lambda value: _is_mapped(value, folder))])
    cutter = Cutter(model.graph, limit // LIGHT_SHARE)
    pieces = cutter.pieces(limit)
    return Segmented(where, *signature(model), [segment_of(model, cutter, piece, folder, limit) for piece in pieces])


def signature(model: ir.Model) -> tuple[list[Spec], list[Spec]]:
    """Inputs and outputs of a graph, as a session over it would describe them."""
    return [_spec(value) for value in model.graph.inputs], [_spec(value) for value in model.graph.outputs]


def limit_for(graph: ir.Graph) -> int:
    """Bytes of weights in a session, where nobody says how many."""
    tensors = (value.const_value for value in graph.initializers.values())
    largest = max((widened(tensor) for tensor in tensors if tensor is not None), default=0)
    return min(max(largest, SMALLEST_LIMIT), LARGEST_LIMIT)


def _spec(value: ir.Value) -> Spec:
    kind = value.dtype.name.lower() if value.dtype is not None else "float"
    dims = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else []
    return Spec(value.name or "", f"tensor({kind})", dims)


def segment_of(model: ir.Model, cutter: Cutter, piece: Piece, where: Path, limit: int | None = None) -> Segment:
    """A piece as something that runs alone; `where` is the resolved path of the model's file, `limit` as in `split`."""
    graph = model.graph
    returned = [v for v in piece.gives if v.producer() is None]  # inputs and constants that the graph gives as they are
    used = list(dict.fromkeys([*(v for node in piece.nodes for v in cutter.reads[node]), *returned]))
    initializers = [v for v in used if v.producer() is None and v.const_value is not None]
    inputs = [v for v in used if v.is_graph_input() and v.const_value is None]
    lazy = {v.name or "": v.const_value for v in initializers if _is_held(v, where)}
    own = sum(widened(v.const_value) for v in initializers if v.const_value is not None and not _is_mapped(v, where))
    return Segment(
        reads=tuple(v.name or "" for v in piece.reads),
        gives=tuple(v.name or "" for v in piece.gives),
        size=piece.bytes,
        proto=partial(_serialized, model, graph, piece, inputs, initializers, frozenset(lazy)),
        weights={name: partial(_weight, tensor) for name, tensor in lazy.items() if tensor is not None},
        own=own,
        codes=any(v.const_value.dtype.itemsize <= 1 for v in initializers if _is_weight(v.const_value)),
        wide=limit is not None and piece.bytes - own > limit,
        tokenwise=is_tokenwise(piece.nodes),
    )


def _is_weight(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    return tensor is not None and tensor.nbytes > _EMBEDDED and tensor.dtype is not ir.DataType.STRING


def _is_mapped(value: ir.Value, where: Path) -> bool:
    """Whether a session reads a weight from its file as it is: nothing is computed from it once and kept."""
    tensor, as_is = value.const_value, {"MatMul", "Gemm", "Gather"}
    kept = isinstance(tensor, ir.ExternalTensor) and tensor.dtype is ir.DataType.FLOAT and not _is_held(value, where)
    return kept and all(use.node.op_type in as_is for use in value.uses())


def _is_held(value: ir.Value, where: Path) -> bool:
    """Whether a weight is handed to the session as an array: it is in no file that the session could read itself.

    In the model's own file weights lie wherever they happen to, and kernels want their numbers aligned.
    """
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= _EMBEDDED or tensor.dtype is ir.DataType.STRING or tensor.dtype.itemsize < 1:
        return False
    if not isinstance(tensor, ir.ExternalTensor) or str(tensor.location) == where.name:
        return True
    return Path(tensor.base_dir).resolve() != where.parent


def _weight(tensor: ir.TensorProtocol) -> Weight:
    return Weight(np.require(tensor.numpy(), requirements=["C", "A"]), int(tensor.dtype))


def _is_mixed(value: ir.Value) -> bool:
    """Whether attention reads a value with all heads in one axis, turned by a rotary embedding or as it is.

    Its width is the model's; the definition of Attention takes one that is not known for 0, and so what it gives.
    """
    readers = [use.node for use in value.uses() if is_standard(use.node)]
    return any(_HEADS.get(node.op_type) in node.attributes for node in readers)


def _serialized(
    model: ir.Model,
    graph: ir.Graph,
    piece: Piece,
    inputs: list[ir.Value],
    initializers: list[ir.Value],
    held: frozenset[str],
    handed: Mapping[str, Handed],
) -> bytes:
    """The segment as a ModelProto; the `held` weights are references only, which the session is given arrays for."""
    view = ir.GraphView(
        [*inputs, *piece.reads],
        piece.gives,
        nodes=piece.nodes,
        initializers=[value for value in initializers if value.name not in held],
        opset_imports=graph.opset_imports,
        name=graph.name or "segment",
    )
    # Written as it lies: a copy of the view to edit would take longer than all else here.
    whole = ir.Model(cast("ir.Graph", view), ir_version=model.ir_version, functions=list(model.functions.values()))
    proto = ir.to_proto(whole)
    mixed = {value.name for value in piece.reads if _is_mixed(value)}
    given = {value.name for value in piece.gives}
    told = [info for info in proto.graph.value_info if info.name not in given]  # outputs tell of themselves
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(told)
    for info in proto.graph.input:
        if info.name in handed:
            kind, shape = handed[info.name]
            info.type.tensor_type.elem_type = int(ir.DataType[kind[len("tensor(") : -1].upper()])
            if not info.type.tensor_type.HasField("shape"):
                info.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
            if info.name in mixed:
                info.type.tensor_type.shape.dim[-1].dim_value = shape[-1]
    for value in initializers:
        if (tensor := value.const_value) is not None and value.name in held:
            proto.graph.initializer.append(_reference(value.name, tensor))
    data: bytes = proto.SerializeToString()
    return data


def _reference(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A weight that lies in no file: its name, type and shape."""
    found = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    found.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "held"), ("offset", "0"), ("length", str(tensor.nbytes))):
        found.external_data.add(key=key, value=value)
    return found
