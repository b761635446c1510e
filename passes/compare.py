"""The precision that a product has in a file, and how a site differs from its plan."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.passes.collect import attribute_of
from spq_graph.passes.editor import ADDED, Operand
from spq_graph.passes.encode import Encoded, unlike
from spq_graph.passes.forms import ACCURACY_LEVELS, block_of, nbits_attributes, quantizer_of, storage_of
from spq_graph.passes.fp8 import E4M3, activation_scale, panel_shape
from spq_graph.passes.operator import PANELS_TYPE, Fp8Call, is_fp8_matmul, precision_of_call
from spq_graph.passes.scales import ActivationQuantizer
from spq_graph.passes.values import Weight, scalar_of, weight_of
from spq_graph.plan import SitePlan
from spq_graph.recipe import Precision, Recipe
from spq_graph.targets import Form

_STORED = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}
FP8 = ir.DataType(E4M3.element_type)


def precision_of(node: ir.Node) -> Precision:
    """The precision that a product has in the file: INT8 for any integer container, 8 bits for any by block."""
    if (said := _said_by_operator(node)) is not None:
        return said
    if len(node.inputs) < 2:  # no product at all; readers of foreign files ask of every node
        return Precision.FP32
    activation, weight = (
        p if (p := _producer(v)) is not None and p.op_type == "DequantizeLinear" else None for v in node.inputs[:2]
    )
    if weight is not None and (codes := weight_of(weight.inputs[0])) is not None:
        if codes.tensor.dtype is FP8:
            return Precision.W8FP8A16 if activation is None else Precision.FP8_E4M3
        return Precision.W8A16 if activation is None else Precision.INT8
    held = weight_of(node.inputs[1])
    return _STORED.get(held.tensor.dtype, Precision.FP32) if held is not None else Precision.FP32


def _said_by_operator(node: ir.Node) -> Precision | None:
    """The precision that a node states by what it is, whatever it reads."""
    if is_fp8_matmul(node):
        return precision_of_call(node)
    if node.op_type == "MatMulNBits":
        return Precision.W8A8_BLOCK if _level_of(node) == ACCURACY_LEVELS[Form.NBITS] else Precision.W8A16
    return Precision.INT8 if node.op_type == "MatMulInteger" else None


def _level_of(node: ir.Node) -> int:
    return int(attribute_of(node, "accuracy_level", 0))


def differs(node: ir.Node, site: SitePlan, recipe: Recipe) -> str | None:
    """How a site's product differs from its plan, in words; None where it does not.

    What stands around the product, and what its weight holds, is for `misplaced` and `differing_weight`.
    """
    found = precision_of(node)
    wanted = _read_as(site.precision, recipe.profile.forms.get(site.precision))
    # What is to be computed in fp32 may be stored in half: its weights are widened exactly.
    as_good = wanted is Precision.FP32 and found in _STORED.values()
    if found is not wanted and not as_good:
        level = f" (accuracy_level {_level_of(node)})" if node.op_type == "MatMulNBits" else ""
        return f"planned {site.precision}, found {found}{level}"
    if wanted.needs_range and site.range is None:
        return "the plan holds no range"
    return None if as_good else _differs_in_form(node, site, recipe)


def differing_weight(node: ir.Node, site: SitePlan, operand: Operand, recipe: Recipe, opset: int) -> str | None:
    """How what a site's weight is stored as differs from the source's weight and the recipe, in words.

    Args:
        node: the product.
        site: its plan.
        operand: the source's weight.
        recipe: of the plan.
        opset: of the graph.
    """
    form = recipe.profile.forms[site.precision]
    holder = _producer(node.inputs[1]) if len(node.inputs) > 1 else None
    codes, *beside = node.inputs[1:] if holder is None else holder.inputs
    held = codes.const_value if codes is not None else None
    storage = storage_of(site, operand, recipe, opset)
    if held is None or held.dtype is not storage.dtype or tuple(held.shape.numpy()) != storage.shape:
        return f"its weight is not held as {storage.dtype.name.lower()} {list(storage.shape)}"
    if (text := unlike(storage, held)) is not None:
        return text
    storage = held.storage if isinstance(held, Encoded) else storage
    if storage.scales is None:
        return None
    if form is Form.MATMUL_INTEGER:
        beside = _scales_of_sums(node)
        wanted = quantizer_of(site, recipe).scale * storage.scales
    else:
        wanted = storage.scales
    scales = beside[0].const_value if beside and beside[0] is not None else None
    if scales is None or not np.array_equal(scales.numpy(), wanted):
        return "its weight has other scales than the source's weight and the recipe ask for"
    zeros = beside[1].const_value if form is Form.QDQ and len(beside) > 1 and beside[1] is not None else None
    return "its weight has a zero point that is not 0" if zeros is not None and zeros.numpy().any() else None


def _scales_of_sums(node: ir.Node) -> list[ir.Value | None]:
    """What the integer sums of a product are multiplied by, behind the Cast that makes numbers of them."""
    users = [use.node for use in node.outputs[0].uses()]
    readers = [use.node for user in users for use in user.outputs[0].uses()]
    return [readers[0].inputs[1]] if len(readers) == 1 and len(readers[0].inputs) == 2 else []


def _read_as(precision: Precision, form: Form | None) -> Precision:
    """What a file says of a precision that was written in a form.

    Every integer grid lies in the same container. MatMulNBits reads as what it is on a CPU, though on other devices its
    kernel does not heed the level.
    """
    if precision.bits is not None:
        return Precision.INT8
    return Precision.W8A8_BLOCK if form is Form.NBITS else precision


def _differs_in_form(node: ir.Node, site: SitePlan, recipe: Recipe) -> str | None:
    text: str | None = None
    match recipe.profile.forms.get(site.precision):
        case Form.QDQ if site.precision.is_fp8:
            text = _differing_pair(node, site, recipe)
        case Form.QDQ | Form.MATMUL_INTEGER as form:
            text = _differing_codes(node, site, recipe, form)
        case Form.NBITS | Form.NBITS_FLOAT as form:
            found, wanted = {name: a.value for name, a in node.attributes.items()}, nbits_attributes(site, form)
            text = None if found == wanted else f"its node has the attributes {found}, not {wanted}"
        case Form.OPERATOR:
            text = _differing_call(node, site, recipe)
        case Form.WEIGHT:
            text = _differing_weight(node, site)
        case Form.COMPUTED:
            kinds = {v.dtype for v in (node.inputs[1], node.outputs[0]) if v is not None and v.dtype is not None}
            text = "its product is not computed in the type of its operands" if len(kinds) > 1 else None
    return text


def _differing_codes(node: ir.Node, site: SitePlan, recipe: Recipe, form: Form) -> str | None:
    """Whether the quantizers of an integer site are those that its range and bits ask for, in the target's form."""
    wanted = quantizer_of(site, recipe)
    if (node.op_type == "MatMulInteger") is not (form is Form.MATMUL_INTEGER):
        return f"it is a {node.op_type}, the target takes {form}"
    quantize = _producer(node.inputs[0])
    if form is Form.QDQ:
        quantize = _producer(quantize.inputs[0]) if quantize is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return "its activation is dequantized but never quantized"
    if [scalar_of(v) for v in quantize.inputs[1:]] != [float(wanted.scale), float(wanted.zero_point)]:
        return "its activation has another quantizer than its range asks for"
    if wanted.bits < 8 and not _clips(_producer(quantize.inputs[0]), wanted):
        return f"no Clip keeps its activation within {wanted.bits} bits"
    codes = weight_of(node.inputs[1]) if form is Form.MATMUL_INTEGER else _dequantized_weight(node)
    return None if _is(codes, ir.DataType.INT8, site.shape) else "its weight is not held as int8 [K, N]"


def _clips(node: ir.Node | None, wanted: ActivationQuantizer) -> bool:
    """Whether a node clips to what a quantizer has codes for."""
    limits = [scalar_of(v) for v in node.inputs[1:]] if node is not None and node.op_type == "Clip" else []
    return limits == [float(wanted.low), float(wanted.high)]


def _differing_pair(node: ir.Node, site: SitePlan, recipe: Recipe) -> str | None:
    """Whether the scales of an FP8 site in Q/DQ are those that its range and the target ask for."""
    back = _producer(node.inputs[0])
    quantize = _producer(back.inputs[0]) if back is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear" or site.range is None:
        return "its activation is dequantized but never quantized"
    if scalar_of(quantize.inputs[1]) != float(activation_scale(*site.range, E4M3)):
        return "its activation has another scale than its range asks for"
    return None if _is(_dequantized_weight(node), FP8, site.shape) else "its weight is not held as FP8 [K, N]"


def _differing_weight(node: ir.Node, site: SitePlan) -> str | None:
    """Whether a weight that stands alone is held as codes, with scales for blocks or output channels."""
    kind = FP8 if site.precision.is_fp8 else ir.DataType.INT8
    if not _is(_dequantized_weight(node), kind, site.shape):
        return f"its weight is not held as {kind.name.lower()} [K, N]"
    dequantize, graph = _producer(node.inputs[1]), node.graph
    if kind is FP8 or dequantize is None or graph is None:
        return None
    block = block_of(site, graph.opset_imports.get("", 1)) or 0
    found = dequantize.attributes.get_int("block_size", 0)
    return None if found == block else f"its weight has blocks of {found}, not {block}"


def _differing_call(node: ir.Node, site: SitePlan, recipe: Recipe) -> str | None:
    """Whether an FP8 site calls the operator as its range and shape ask for."""
    wanted = Fp8Call.of(site, recipe)
    if (source := _source(node.inputs[0])) != site.input:
        return f"it reads {source}, the plan says {site.input}"
    if {name: attribute.value for name, attribute in node.attributes.items()} != wanted.attributes:
        return "its node has other attributes than the plan asks for"
    _, panels, scales, a_scale = (_held(value) for value in node.inputs) if len(node.inputs) == 4 else [None] * 4
    if a_scale != (ir.DataType.FLOAT, ()) or scalar_of(node.inputs[3]) != float(wanted.a_scale):
        return "its activation has another scale than its range asks for"
    if panels != (PANELS_TYPE, panel_shape(site.shape)):
        return "its weight is not held as FP8 panels of [K, N]"
    channels = () if recipe.weights == "per_tensor" else site.shape[1:]
    return None if scales == (ir.DataType.FLOAT, channels) else "its weight has no scale for each channel"


def _held(value: ir.Value | None) -> tuple[ir.DataType, tuple[int, ...]] | None:
    """Element type and shape of a constant; None for what is none."""
    tensor = value.const_value if value is not None else None
    return (tensor.dtype, tuple(int(d) for d in tensor.shape.numpy())) if tensor is not None else None


def _is(weight: Weight | None, kind: ir.DataType, shape: tuple[int, int]) -> bool:
    return weight is not None and _held(weight.initializer) == (kind, shape)


def _source(value: ir.Value | None) -> str | None:
    """Name of a value, seen through the Cast that widens it."""
    cast = _producer(value)
    if cast is not None and cast.op_type == "Cast" and ADDED in cast.metadata_props:
        value = cast.inputs[0]
    return value.name if value is not None else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _dequantized_weight(node: ir.Node) -> Weight | None:
    dequantize = _producer(node.inputs[1])
    return weight_of(dequantize.inputs[0]) if dequantize is not None else None
