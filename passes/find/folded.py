"""Products that a runtime need not run: their result is the same whatever goes in, or that of another product.

Told from the graph alone, so that a node which a runtime does not list can be accounted for. What is multiplied by zero
counts as zero: activations are finite, which calibration has seen to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from spq_graph.passes.base.marks import is_int8_matmul, multiplies
from spq_graph.passes.base.values import is_product, is_standard, same_tensor

Array = npt.NDArray[np.generic]
_PRODUCTS = frozenset({"MatMulNBits", "FusedMatMul"})
# One number for one number: of operands that hold one number each, this is what they make.
_ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Ceil",
        "Clip",
        "DequantizeLinear",
        "Div",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
    }
)
# What only moves the numbers of its first operand, or takes one of many that are alike.
_MOVES = frozenset(
    {
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_SHAPES = frozenset({"Shape", "Size"})  # of these, what is asked about does not matter: only how large it is
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_DEEPEST = 64  # nodes behind two values that are compared
_SAMPLE = 1024
_MOST_COMPUTED = 64 << 20  # bytes of a weight that is made of others when it is asked for: larger ones are not asked


def constant_products(model: ir.Model) -> frozenset[str]:
    """Names of the products of the main graph that give the same for any tokens.

    Args:
        model: a graph as it is run, quantized or not, in the order of its nodes.
    """
    known: dict[ir.Value, Array | None] = {}
    found = set()
    for node in model.graph:
        results = _results(node, known)
        if results is None:
            continue
        known.update(dict.fromkeys(node.outputs, results[0]))
        if _multiplies(node):
            found.add(node.name or "")
    return frozenset(found)


def twins_of(model: ir.Model, names: Collection[str]) -> dict[str, list[str]]:
    """Products of the main graph that compute the very same as each of these, by name."""
    products = [node for node in model.graph if _multiplies(node)]
    missing = [node for node in products if node.name in names]
    return {
        node.name or "": [other.name or "" for other in products if other is not node and _same_node(node, other, 0)]
        for node in missing
    }


def _multiplies(node: ir.Node) -> bool:
    return is_product(node) or node.op_type in _PRODUCTS or multiplies(node)


def _results(node: ir.Node, known: dict[ir.Value, Array | None]) -> tuple[Array | None] | None:
    """What a node gives for any tokens: one number all over, or None for many; None itself where it depends on them."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    if node.op_type in _SHAPES and is_standard(node):
        return (None,)
    if (product := _by_zero(node, known)) is not None:
        return product
    operands = [value for value in node.inputs if value is not None]
    if operands and node.op_type in _MOVES and is_standard(node) and _is_known(operands[0], known):
        moved = _uniform(operands[0], known)
        if moved is not None:
            return (moved,)
    if not operands or node.op_type in _RANDOM or not all(_is_known(value, known) for value in operands):
        return None
    return (_evaluated(node, known),)


def _is_known(value: ir.Value, known: dict[ir.Value, Array | None]) -> bool:
    return value in known or _constant(value) is not None


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return value.const_value if value.producer() is None and not value.is_graph_input() else None


def _uniform(value: ir.Value | None, known: dict[ir.Value, Array | None]) -> Array | None:
    """The one number that a value holds all over, [1]; None where it holds several, or depends on the tokens."""
    if value is None:
        return None
    tensor = _constant(value)
    if tensor is not None and value not in known:
        known[value] = _one_number(tensor)
    return known.get(value)


def _one_number(tensor: ir.TensorProtocol) -> Array | None:
    computed = isinstance(tensor, ir.LazyTensor) and tensor.nbytes > _MOST_COMPUTED
    if computed or tensor.dtype is ir.DataType.STRING or not tensor.size:
        return None
    numbers = np.asarray(tensor.numpy()).reshape(-1)
    alike = bool((numbers[:_SAMPLE] == numbers[0]).all()) and bool((numbers == numbers[0]).all())
    return numbers[:1].copy() if alike else None


def _is_zero(value: ir.Value | None, known: dict[ir.Value, Array | None]) -> bool:
    number = _uniform(value, known)
    return number is not None and not number.astype(np.float32).any()


def _by_zero(node: ir.Node, known: dict[ir.Value, Array | None]) -> tuple[Array | None] | None:
    """As `_results`, where something is multiplied by zero; None for any other node."""
    operands = list(node.inputs)
    if node.op_type == "DequantizeLinear" and is_standard(node):
        return (np.zeros(1, np.float32),) if _stands_for_zero(operands, known) else None
    if node.op_type == "Mul" and is_standard(node):
        multiplies, added = operands, None
    elif _multiplies(node):
        multiplies = operands[:1] if node.op_type == "MatMulNBits" else operands[:2]
        added = 3 if is_int8_matmul(node) else {"Gemm": 2, "MatMulNBits": 5}.get(node.op_type)
    elif node.op_type == "Attention" and is_standard(node) and not any(operands[4:6]):
        multiplies, added = operands[2:3], None
    else:
        return None
    bias = operands[added] if added is not None and len(operands) > added else None
    zeros = [_uniform(value, known) for value in multiplies if _is_zero(value, known)]
    if not zeros or (bias is not None and not _is_known(bias, known)):
        return None
    return (zeros[0] if bias is None or _is_zero(bias, known) else None,)


def _stands_for_zero(operands: Sequence[ir.Value | None], known: dict[ir.Value, Array | None]) -> bool:
    """Whether all codes that are dequantized equal their zero point, whatever the scales."""
    code = _uniform(operands[0], known)
    if len(operands) < 3 or operands[2] is None:
        return code is not None and not float(code[0])
    point = _uniform(operands[2], known)
    return code is not None and point is not None and float(code[0]) == float(point[0])


def _evaluated(node: ir.Node, known: dict[ir.Value, Array | None]) -> Array | None:
    """The number that a node makes of one number each; None where it makes several."""
    numbers = [_uniform(value, known) for value in node.inputs]
    absent = [value is None for value in node.inputs]
    if node.op_type not in _ELEMENTWISE or not is_standard(node):
        return None
    if any(number is None and not gone for number, gone in zip(numbers, absent, strict=True)):
        return None
    names = ["" if gone else f"i{place}" for place, gone in enumerate(absent)]
    proto = onnx.NodeProto()
    proto.CopyFrom(ir.to_proto(node))
    attributes = [attribute for attribute in proto.attribute if attribute.name not in ("axis", "block_size")]
    del proto.attribute[:], proto.input[:], proto.output[:]
    proto.attribute.extend(attributes)
    proto.input.extend(names)
    proto.output.append("o")
    feeds = {name: number for name, number in zip(names, numbers, strict=True) if name and number is not None}
    scalar = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    from onnx.reference import ReferenceEvaluator  # takes a while, and few graphs ask for it

    try:
        graph = onnx.helper.make_graph(
            [proto],
            "one",
            [
                onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(number.dtype), None)
                for name, number in feeds.items()
            ],
            [onnx.helper.make_value_info("o", onnx.TypeProto())],
        )
        opset = node.graph.opset_imports.get("", 21) if node.graph is not None else 21
        run = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))
        given = {name: number[0] if scalar and name != "i0" else number for name, number in feeds.items()}
        results: Any = run.run(None, {name: np.asarray(number) for name, number in given.items()})
        return np.asarray(results[0]).reshape(-1)[:1]
    except Exception:  # whatever the evaluator lacks is a constant whose number is not known
        return None


def _same(one: ir.Value | None, other: ir.Value | None, depth: int) -> bool:
    """Whether two values are the same for any input."""
    if one is other:
        return True
    if one is None or other is None or depth > _DEEPEST:
        return False
    mine, its = _constant(one), _constant(other)
    if mine is not None or its is not None:
        return mine is not None and its is not None and same_tensor(mine, its)
    makers = one.producer(), other.producer()
    if makers[0] is None or makers[1] is None or one.index() != other.index():
        return False
    return _same_node(makers[0], makers[1], depth + 1)


def _same_node(one: ir.Node, other: ir.Node, depth: int) -> bool:
    if one.op_identifier() != other.op_identifier() or len(one.inputs) != len(other.inputs):
        return False
    if one.op_type in _RANDOM or _attributes(one) != _attributes(other):
        return False
    # The operand that tells most first: activations are mostly one value, or none.
    return all(_same(a, b, depth) for a, b in zip(one.inputs, other.inputs, strict=True))


def _attributes(node: ir.Node) -> dict[str, bytes]:
    return {name: ir.to_proto(attribute).SerializeToString() for name, attribute in node.attributes.items()}
