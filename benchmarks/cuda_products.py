"""Products of one input and one weight on a CUDA device, by name; float16 in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.base.marks import DOMAIN, OP
from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format, fp8_weight_codes, pack_panels
from spq_graph.passes.numbers.scales import absmax_of, scales_to, top_code, weight_codes

BLOCK = 128
NAME = "w"  # what the names of a product's own values begin with
FLOAT = "fp16 MatMul"  # what ratios are over
LARGE = 1 << 16  # bytes; what is smaller is no weight
Array = npt.NDArray[Any]


@dataclass(slots=True)
class Product:
    """One product of the input X and one weight, as nodes and initializers; all its own names begin with NAME."""

    nodes: list[onnx.NodeProto]
    initializers: list[onnx.TensorProto]

    def copy(self, number: int) -> Product:
        """The same under other names, with other bytes in its weight: no two can be shared."""
        renamed = Product([onnx.NodeProto() for _ in self.nodes], [onnx.TensorProto() for _ in self.initializers])
        for old, new in zip((*self.nodes, *self.initializers), (*renamed.nodes, *renamed.initializers), strict=True):
            new.CopyFrom(old)  # type: ignore[arg-type]
        for node in renamed.nodes:
            for names in (node.input, node.output):
                names[:] = [name.replace(NAME, f"{NAME}{number}.", 1) for name in names]
        for tensor in renamed.initializers:
            tensor.name = tensor.name.replace(NAME, f"{NAME}{number}.", 1)
            if len(tensor.raw_data) > LARGE:
                tensor.raw_data = np.roll(np.frombuffer(tensor.raw_data, np.uint8), 64 * number).tobytes()
        return renamed


Write = Callable[[Array], Product]


def fp16(weight: Array) -> Product:
    tensor = numpy_helper.from_array(weight.astype(np.float16), f"{NAME}B")
    return Product([helper.make_node("MatMul", ["X", tensor.name], [f"{NAME}Y"])], [tensor])


def int8(weight: Array) -> Product:
    """What target cuda writes in a graph in float16: static int8 by MatMulInteger, and its sums to their scale."""
    scales = scales_to(absmax_of([weight]), top_code(8), "per_channel")
    a_scale = np.float32(4.0 / 127)
    given = {"a_scale": a_scale, "zero": np.int8(0), "B": weight_codes(weight, scales, 8), "scale": a_scale * scales}
    tensors = [numpy_helper.from_array(np.asarray(array), f"{NAME}{key}") for key, array in given.items()]
    a, zero, b, scale = (tensor.name for tensor in tensors)
    wide, codes, sums, numbers, scaled = (f"{NAME}{key}" for key in ("wide", "codes", "sums", "numbers", "scaled"))
    nodes = [
        helper.make_node("Cast", ["X"], [wide], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", [wide, a, zero], [codes]),
        helper.make_node("MatMulInteger", [codes, b], [sums]),
        helper.make_node("Cast", [sums], [numbers], to=TensorProto.FLOAT),
        helper.make_node("Mul", [numbers, scale], [scaled]),
        helper.make_node("Cast", [scaled], [f"{NAME}Y"], to=TensorProto.FLOAT16),
    ]
    return Product(nodes, tensors)


def _codes(array: Array) -> onnx.TensorProto:
    return helper.make_tensor(
        f"{NAME}B", E4M3.element_type, array.shape, np.ascontiguousarray(array).tobytes(), raw=True
    )


def blocks(a_scale: float | None) -> Write:
    """ONNX Runtime's own FP8 product, with the same scale in every block of a column: the same numbers as ours."""

    def write(weight: Array) -> Product:
        scales = scales_to(absmax_of([weight]), E4M3.largest, "per_channel")
        by_block = np.repeat(scales[:, None], -(-weight.shape[0] // BLOCK), axis=1)
        tensors = [_codes(fp8_weight_codes(weight, scales).T), numpy_helper.from_array(by_block, f"{NAME}scale")]
        if a_scale is not None:
            tensors.append(numpy_helper.from_array(np.float32(a_scale), f"{NAME}a_scale"))
        inputs = ["X", *(tensor.name for tensor in tensors)]
        node = helper.make_node(
            "MatMulBlockQuantizedFp8Weight", inputs, [f"{NAME}Y"], domain="com.microsoft", block_size=BLOCK
        )
        return Product([node], tensors)

    return write


def ours(form: Fp8Format | None) -> Write:
    def write(weight: Array) -> Product:
        scales = scales_to(absmax_of([weight]), E4M3.largest, "per_channel")
        a_scale = 1.0 if form is None else 4.0 / form.largest
        tensors = [
            _codes(pack_panels(fp8_weight_codes(weight, scales))),
            numpy_helper.from_array(scales, f"{NAME}scale"),
            numpy_helper.from_array(np.float32(a_scale), f"{NAME}a_scale"),
        ]
        node = helper.make_node(
            OP,
            ["X", *(tensor.name for tensor in tensors)],
            [f"{NAME}Y"],
            domain=DOMAIN,
            K=weight.shape[0],
            N=weight.shape[1],
            fast=1,
            a_type=form.element_type if form else TensorProto.FLOAT,
        )
        return Product([node], tensors)

    return write


KERNELS: dict[str, tuple[Write, int]] = {  # and bytes a weight
    FLOAT: (fp16, 2),
    "int8 MatMulInteger": (int8, 1),
    "ORT fp8 x fp16": (blocks(None), 1),
    "ORT fp8 x e4m3": (blocks(4.0 / 448), 1),
    "spq w8fp8a16": (ours(None), 1),
    "spq fp8_e4m3": (ours(E4M3), 1),
    "spq fp8_e5m2": (ours(E5M2), 1),
}
