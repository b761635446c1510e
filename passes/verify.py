"""Verify: the graph equals the plan, Q and DQ come in pairs, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from spq_graph.errors import CheckError
from spq_graph.passes.editor import ADDED
from spq_graph.passes.fp8 import panel_shape
from spq_graph.passes.operator import (
    DOMAIN,
    OP,
    PANELS_TYPE,
    Fp8Call,
    fp8_matmul_function,
    is_fp8_matmul,
    precision_of_call,
)
from spq_graph.passes.scales import ActivationQuantizer
from spq_graph.passes.values import Weight, scalar_of, weight_of
from spq_graph.plan import Plan, SitePlan
from spq_graph.recipe import Precision

_MAY_GO = frozenset({"Transpose", "Cast", "Identity"})  # a constant's, with the operand that it led to
_STORED = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}


class Line(NamedTuple):
    """What must not change of a node: its name, its operator and what it reads."""

    name: str
    op_type: str
    reads: tuple[str, ...]


def outline(model: ir.Model) -> list[Line]:
    """Every node that no pass of ours added, in order."""
    return [
        Line(node.name or "", node.op_type, tuple((v.name or "") if v is not None else "" for v in node.inputs))
        for node in model.graph
        if ADDED not in node.metadata_props
    ]


class VerifyPlan(ir.passes.InPlacePass):
    """Check a model against its plan; changes nothing.

    Args:
        plan: what should be there.
        before: `outline` of the model before the plan was applied.

    Calling it raises CheckError, naming the sites where graph and plan differ.
    """

    def __init__(self, plan: Plan, before: list[Line]) -> None:
        super().__init__()
        self.plan = plan
        self.before = before

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name: node for node in model.graph}
        wrong = [
            f"{site.key}: {text}" for site in self.plan.sites if (text := self._differs(nodes.get(site.node), site))
        ]
        names = {site.node for site in self.plan.sites}
        wrong += _unpaired(model.graph)
        wrong += _changed(self.before, outline(model), names)
        wrong += _strangers(model.graph, names)
        wrong += _differing_function(model, any(map(is_fp8_matmul, model.graph)))
        if wrong:
            raise CheckError(
                f"the graph is not what the plan says: {'; '.join(wrong[:5])}", remedy="please report this"
            )
        return ir.passes.PassResult(model, modified=False)

    def _differs(self, node: ir.Node | None, site: SitePlan) -> str | None:
        if node is None:
            return f"its node {site.node} is gone"
        found = precision_of(node)
        wanted = Precision.INT8 if site.precision.bits is not None else site.precision
        # What is to be computed in fp32 may be stored in half: its weights are widened exactly.
        as_good = wanted is Precision.FP32 and found in _STORED.values()
        if found is not wanted and not as_good:
            return f"planned {site.precision}, found {found}"
        if wanted is Precision.INT8:
            return self._differing_codes(node, site)
        return self._differing_call(node, site) if wanted.is_fp8 else None

    def _differing_codes(self, node: ir.Node, site: SitePlan) -> str | None:
        """Whether the quantizers of an integer site are those that its range and bits ask for."""
        bits = site.precision.bits or 8
        if site.range is None:
            return "the plan holds no range"
        wanted = ActivationQuantizer.fit(*site.range, bits, self.plan.recipe.activations)
        back = _producer(node.inputs[0])
        quantize = _producer(back.inputs[0]) if back is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return "its activation is dequantized but never quantized"
        if [scalar_of(v) for v in quantize.inputs[1:]] != [float(wanted.scale), float(wanted.zero_point)]:
            return "its activation has another quantizer than its range asks for"
        clip = _producer(quantize.inputs[0])
        if bits < 8 and (clip is None or clip.op_type != "Clip" or scalar_of(clip.inputs[2]) != float(wanted.high)):
            return f"no Clip keeps its activation within {bits} bits"
        codes = _weight_codes(node)
        held = (codes.dtype, tuple(codes.shape.numpy())) if codes is not None else None
        return None if held == (ir.DataType.INT8, site.shape) else "its weight is not held as int8 [K, N]"

    def _differing_call(self, node: ir.Node, site: SitePlan) -> str | None:
        """Whether an FP8 site calls the operator as its range and shape ask for."""
        if site.precision.needs_range and site.range is None:
            return "the plan holds no range"
        wanted = Fp8Call.of(site, self.plan.recipe)
        if (source := _source(node.inputs[0])) != site.input:
            return f"it reads {source}, the plan says {site.input}"
        if {name: attribute.value for name, attribute in node.attributes.items()} != wanted.attributes:
            return "its node has other attributes than the plan asks for"
        _, panels, scales, a_scale = (_held(value) for value in node.inputs) if len(node.inputs) == 4 else [None] * 4
        if a_scale != (ir.DataType.FLOAT, ()) or scalar_of(node.inputs[3]) != float(wanted.a_scale):
            return "its activation has another scale than its range asks for"
        if panels != (PANELS_TYPE, panel_shape(site.shape)):
            return "its weight is not held as FP8 panels of [K, N]"
        channels = () if self.plan.recipe.weights == "per_tensor" else site.shape[1:]
        return None if scales == (ir.DataType.FLOAT, channels) else "its weight has no scale for each channel"


def _differing_function(model: ir.Model, calls: bool) -> list[str]:
    """Whether the operator's function is there, and as we write it, exactly where something calls it."""
    wanted = fp8_matmul_function(model.graph.opset_imports.get("", 1))
    found = model.functions.get(wanted.identifier())
    if (found is not None) is not calls:
        return [f"function {DOMAIN}::{OP} is {'missing' if calls else 'there, but nothing calls it'}"]
    if found is None or ir.to_proto(found) == ir.to_proto(wanted):
        return []
    return [f"function {DOMAIN}::{OP} is not ours"]


def precision_of(node: ir.Node) -> Precision:
    """The precision that a product has in the file: INT8 for any integer container."""
    if is_fp8_matmul(node):
        return precision_of_call(node)
    if node.op_type == "MatMulNBits":
        return Precision.W8A16
    producers = [_producer(v) for v in node.inputs[:2]]
    if all(p is not None and p.op_type == "DequantizeLinear" for p in producers):
        return Precision.INT8
    weight = weight_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return _STORED.get(weight.tensor.dtype, Precision.FP32) if weight is not None else Precision.FP32


def _held(value: ir.Value | None) -> tuple[ir.DataType, tuple[int, ...]] | None:
    """Element type and shape of a constant; None for what is none."""
    tensor = value.const_value if value is not None else None
    return (tensor.dtype, tuple(int(d) for d in tensor.shape.numpy())) if tensor is not None else None


def _source(value: ir.Value | None) -> str | None:
    """Name of a value, seen through the Cast that widens it."""
    cast = _producer(value)
    if cast is not None and cast.op_type == "Cast" and ADDED in cast.metadata_props:
        value = cast.inputs[0]
    return value.name if value is not None else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _weight_codes(node: ir.Node) -> ir.TensorProtocol | None:
    dequantize = _producer(node.inputs[1])
    weight: Weight | None = weight_of(dequantize.inputs[0]) if dequantize is not None else None
    return weight.tensor if weight is not None else None


def _unpaired(graph: Iterable[ir.Node]) -> list[str]:
    wrong = []
    for node in graph:
        if ADDED not in node.metadata_props:  # the graph's own are its own business
            continue
        if node.op_type == "QuantizeLinear":
            users = {use.node.op_type for use in node.outputs[0].uses()}
            if users != {"DequantizeLinear"}:
                wrong.append(f"{node.name} feeds {sorted(users) or 'nothing'} instead of DequantizeLinear")
        elif node.op_type == "DequantizeLinear" and weight_of(node.inputs[0]) is None:
            source = _producer(node.inputs[0])
            if source is None or source.op_type != "QuantizeLinear" or source.inputs[1:] != node.inputs[1:]:
                wrong.append(f"{node.name} does not undo a QuantizeLinear")
    return wrong


def _changed(before: list[Line], after: list[Line], sites: set[str]) -> list[str]:
    """Nodes outside of the sites that came, went, moved, or read something else."""
    kept = {line.name for line in after}
    old = [line for line in before if line.name not in sites and (line.name in kept or line.op_type not in _MAY_GO)]
    new = [line for line in after if line.name not in sites]
    if old == new:
        return []
    names = sorted({line.name for line in set(old) ^ set(new)}) or ["their order"]
    return [f"nodes outside of the plan changed: {', '.join(names[:3])}"]


def _strangers(graph: Iterable[ir.Node], sites: set[str]) -> list[str]:
    """Nodes that pass for inserted ones, but for no site of the plan."""
    return [
        f"{node.name} was inserted for {node.metadata_props[ADDED]!r}, which is no site"
        for node in graph
        if node.metadata_props.get(ADDED, next(iter(sites), "")) not in sites
    ][:3]
