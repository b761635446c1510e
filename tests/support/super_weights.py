"""Decoders with a planted super weight: one number of a down projection makes BOS's activation a massive one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from tests.support.decoders import BOS, write_decoder

Form = Literal["matmul", "transposed", "gemm", "shared", "half"]
FORMS: tuple[Form, ...] = ("matmul", "transposed", "gemm", "shared", "half")
LAYER, ROW, COLUMN, WEIGHT, INPUT = 1, 7, 159, 5.0, 3000.0
DOWN = f"layers.{LAYER}.mlp.down_proj"
WIDTH, HIDDEN = 128, COLUMN + 1
IDS = [BOS, *range(2, 48)]
PROMPT = " ".join(map(str, IDS))


def write_super_weight(path: Path, form: Form = "matmul", *, weight: float = WEIGHT) -> Path:
    """A decoder of three layers without norms whose layer 1 gives `weight` times 3000 in channel 7 on BOS alone.

    Args:
        path: the .onnx file.
        form: how the weight lies: as [K, N], transposed behind a node or by Gemm, shared with the next layer's down
            projection, or in float16 behind a Cast.
        weight: what is planted; 0 for a spike that nothing reads.
    """
    write_decoder(path, layers=3, width=WIDTH, hidden=HIDDEN, spikes={LAYER: INPUT})
    model = onnx.load(path)
    initializer = next(one for one in model.graph.initializer if one.name == f"{DOWN}.weight")
    array = numpy_helper.to_array(initializer).copy()
    array[COLUMN, ROW] = weight
    _FORMS[form](model.graph, initializer, array)
    onnx.save(model, path)
    return path


def _held(initializer: onnx.TensorProto, array: npt.NDArray[np.generic]) -> None:
    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), initializer.name))


def _down(graph: onnx.GraphProto, layer: int = LAYER) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == f"layers.{layer}.mlp.down_proj")


def _in_front(graph: onnx.GraphProto, node: onnx.NodeProto, *added: onnx.NodeProto) -> None:
    at = list(graph.node).index(node)
    for offset, one in enumerate(added):
        graph.node.insert(at + offset, one)


def _as_matmul(graph: onnx.GraphProto, initializer: onnx.TensorProto, array: npt.NDArray[np.float32]) -> None:
    _held(initializer, array)


def _as_transposed(graph: onnx.GraphProto, initializer: onnx.TensorProto, array: npt.NDArray[np.float32]) -> None:
    _held(initializer, array.T)
    turned = helper.make_node("Transpose", [initializer.name], ["turned"], name="turned", perm=[1, 0])
    node = _down(graph)
    node.input[1] = "turned"
    _in_front(graph, node, turned)


def _as_gemm(graph: onnx.GraphProto, initializer: onnx.TensorProto, array: npt.NDArray[np.float32]) -> None:
    """Rows of all tokens below each other, times [N, K] transposed, and back."""
    _held(initializer, array.T)
    for name, sizes in (("flat", [-1, HIDDEN]), ("back", [1, -1, WIDTH])):
        graph.initializer.append(numpy_helper.from_array(np.array(sizes), f"{name}.sizes"))
    node = _down(graph)
    value, result = node.input[0], node.output[0]
    before = helper.make_node("Reshape", [value, "flat.sizes"], ["flat"], name="flat")
    product = helper.make_node("Gemm", ["flat", initializer.name], ["rows"], name=node.name, transB=1)
    after = helper.make_node("Reshape", ["rows", "back.sizes"], [result], name="back")
    _in_front(graph, node, before, product, after)
    graph.node.remove(node)


def _as_shared(graph: onnx.GraphProto, initializer: onnx.TensorProto, array: npt.NDArray[np.float32]) -> None:
    """The next layer reads the same weight; nothing makes its input large there."""
    _held(initializer, array)
    _down(graph, LAYER + 1).input[1] = initializer.name


def _as_half(graph: onnx.GraphProto, initializer: onnx.TensorProto, array: npt.NDArray[np.float32]) -> None:
    _held(initializer, array.astype(np.float16))
    cast = helper.make_node("Cast", [initializer.name], ["cast"], name="cast", to=onnx.TensorProto.FLOAT)
    node = _down(graph)
    node.input[1] = "cast"
    _in_front(graph, node, cast)


_FORMS = {"matmul": _as_matmul, "transposed": _as_transposed, "gemm": _as_gemm, "shared": _as_shared, "half": _as_half}


def given(path: Path, ids: list[int] | None = None, *, value: str = f"{DOWN}.out") -> npt.NDArray[np.float32]:
    """A value as ONNX Runtime computes it, [tokens, channels], without anything of ours."""
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=value))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = np.array([ids or IDS])
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    (found,) = session.run([value], {spec.name: feeds[spec.name] for spec in session.get_inputs()})
    return np.asarray(found).reshape(-1, np.asarray(found).shape[-1])
