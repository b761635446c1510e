"""What NVIDIA says of ONNX files with Q/DQ for TensorRT, as checks that share no code with the ones that we write by.

Where it stands, as of TensorRT 10 and 11 (docs.nvidia.com/deeplearning/tensorrt, github.com/onnx/onnx-tensorrt):

- "Working with Quantized Types": quantization is symmetric; INT8 is signed, and FP8 is E4M3.
- "Explicit Quantization": weights that are quantized already want a DequantizeLinear between them and the product; the
  precisions of the graph bind, so a strongly typed network converts nothing by itself.
- "ONNX Opset Guide": opsets 9 to 25. Of FP8, ONNX has had Q/DQ since opset 19.
- operators.md of the parser: operators that it does not take, and types.
- The parser's import of Q/DQ: the type of codes is that of the zero point; zero points are zeros, as many as scales;
  scales are positive, and along an axis as many as it has channels. It takes activations to have one.

Beyond that, E4M3 has one scale for a tensor here, which every version takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

OPSETS = range(9, 26)
FP8_OPSET = 19
QUANTIZED = {TensorProto.INT8: 127, TensorProto.FLOAT8E4M3FN: 448}
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
TYPES = FLOATS | QUANTIZED.keys() | {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
# Those that the parser's table has as not taken, of what a decoder or a quantizer could hold.
NOT_TAKEN = frozenset(
    {"BitShift", "Compress", "ConvInteger", "Det", "DynamicQuantizeLinear", "Hardmax", "MatMulInteger", "MaxUnpool"}
    | {"Multinomial", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct", "SequenceEmpty"}
    | {"SequenceInsert", "SequenceLength", "SplitToSequence", "ConcatFromSequence", "StringNormalizer", "Unique"}
)
PRODUCTS = ("MatMul", "Gemm")
SAME_TYPE = frozenset({*PRODUCTS, "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Concat"})


@dataclass(frozen=True)
class File:
    """A model, what makes and reads its values, its constants and the types of all values."""

    model: onnx.ModelProto
    makers: dict[str, onnx.NodeProto]
    constants: dict[str, np.ndarray]
    types: dict[str, int]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> File:
        graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        known = [*graph.input, *graph.value_info, *graph.output]
        return cls(
            model,
            {name: node for node in model.graph.node for name in node.output},
            {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()},
            {value.name: value.type.tensor_type.elem_type for value in known}
            | {name: tensor.data_type for name, tensor in tensors.items()},
        )

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if name in node.input]

    def all_of(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.model.graph.node if node.op_type in kinds)


def one_domain(file: File) -> Iterator[str]:
    """Operators are ONNX's own and taken by the parser; there are no functions."""
    for node in file.model.graph.node:
        if node.domain or node.op_type in NOT_TAKEN:
            yield f"{node.name}: {node.domain}::{node.op_type}"
    yield from (f"function {function.name}" for function in file.model.functions)


def opset(file: File) -> Iterator[str]:
    """The opset is one that the parser reads and that has the types."""
    found = next(one.version for one in file.model.opset_import if not one.domain)
    if found not in OPSETS or (TensorProto.FLOAT8E4M3FN in file.types.values() and found < FP8_OPSET):
        yield f"opset {found}"


def types(file: File) -> Iterator[str]:
    """Every value is of a type that TensorRT has, and known without running the graph: precisions are binding."""
    for node in file.model.graph.node:
        for name in (*node.input, *node.output):
            if name and file.types.get(name) not in TYPES:
                yield f"{name} of type {file.types.get(name)}"


def symmetric(file: File) -> Iterator[str]:
    """Zero points are zeros, of int8 or E4M3, and of their scale's shape."""
    for node in file.all_of("QuantizeLinear", "DequantizeLinear"):
        zero = file.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None and len(node.input) > 2:
            yield f"{node.name}: its zero point is no constant"
        elif zero is not None and zero.astype(np.float32).any():
            yield f"{node.name}: a zero point that is not 0"
        elif zero is not None and zero.shape != file.constants.get(node.input[1], zero).shape:
            yield f"{node.name}: its zero point has another shape than its scale"
        quantized = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        if file.types[quantized] not in QUANTIZED:
            yield f"{node.name}: codes of type {file.types[quantized]}"


def scales(file: File) -> Iterator[str]:
    """Scales are positive constants of the type of what is (de)quantized: one for an activation, or one a column."""
    for node in file.all_of("QuantizeLinear", "DequantizeLinear"):
        scale = file.constants.get(node.input[1])
        if scale is None:
            yield f"{node.name}: its scale is no constant"
            continue
        wide = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
        if file.types[node.input[1]] != file.types[wide] or file.types[wide] not in FLOATS:
            yield f"{node.name}: its scale is of another type than its numbers"
        if not (np.isfinite(scale.astype(np.float32)).all() and (scale.astype(np.float32) > 0).all()):
            yield f"{node.name}: a scale that is not positive and finite"
        weight = file.constants.get(node.input[0])
        if scale.ndim == 0 or scale.size == 1:
            continue
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
        if weight is None or file.types[node.input[0]] != TensorProto.INT8:
            yield f"{node.name}: more than one scale for what has one"
        elif weight.ndim != 2 or scale.shape != (weight.shape[1],) or axis % weight.ndim != 1:
            yield f"{node.name}: scales along another axis than the output channels"


def placement(file: File) -> Iterator[str]:
    """Codes are read by what dequantizes them, with their scale; a product has both operands quantized, or none."""
    for node in file.all_of("QuantizeLinear"):
        for reader in file.readers(node.output[0]):
            if reader.op_type != "DequantizeLinear" or list(reader.input[1:]) != list(node.input[1:]):
                yield f"{node.name}: {reader.op_type} reads its codes, or with another scale"
    for node in file.all_of(*PRODUCTS):
        back = [file.makers.get(name) for name in node.input[:2]]
        kinds = [
            file.types[maker.input[0]] if maker is not None and maker.op_type == "DequantizeLinear" else None
            for maker in back
        ]
        if kinds[0] != kinds[1]:
            yield f"{node.name}: operands of {kinds[0]} and {kinds[1]}"
    for node in file.all_of("DequantizeLinear"):
        readers = file.readers(node.output[0])
        if file.constants.get(node.input[0]) is not None and any(one.op_type not in PRODUCTS for one in readers):
            yield f"{node.name}: what it makes of a weight is not multiplied by at once"


def one_type(file: File) -> Iterator[str]:
    """What computes with several values has them in one type: nothing is converted by itself."""
    for node in file.all_of(*SAME_TYPE):
        kinds = {file.types.get(name) for name in node.input if name}
        if len(kinds) > 1 or kinds & QUANTIZED.keys():
            yield f"{node.name}: {node.op_type} of types {sorted(map(str, kinds))}"


def codes_are_in_range(file: File) -> Iterator[str]:
    """Codes of weights are symmetric, -127 to 127 in int8, and no NaN in E4M3."""
    for name, array in file.constants.items():
        most = QUANTIZED.get(file.types[name])
        if most is not None and not (np.abs(array.astype(np.float32)) <= most).all():
            yield f"{name}: a code beyond {most}"


RULES: tuple[Callable[[File], Iterator[str]], ...] = (
    one_domain,
    opset,
    types,
    symmetric,
    scales,
    placement,
    one_type,
    codes_are_in_range,
)


def broken(model: onnx.ModelProto) -> list[str]:
    """What in a model TensorRT's documents rule out."""
    file = File.of(model)
    return [text for rule in RULES for text in rule(file)]
