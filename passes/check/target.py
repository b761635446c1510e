"""What a target takes, checked in the graph itself, whatever the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from spq_graph.documents.plan import Plan
from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.own_calls import wrong_calls
from spq_graph.passes.base.values import is_standard, weight_of
from spq_graph.passes.forms.weight import BLOCKED_OPSET
from spq_graph.passes.numbers.fp8 import OLDEST_OPSET
from spq_graph.terms.errors import CheckError, GraphError
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Profile

FP8_TYPES = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})
INTEGER_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_QDQ = ("QuantizeLinear", "DequantizeLinear")
Rule = Callable[[ir.Model, Profile], Iterator[str]]


def refuse_foreign(model: ir.Model, profile: Profile, where: str = "") -> None:
    """Check that a source graph holds only operators of domains that the target has.

    Args:
        model: the graph.
        profile: of the target.
        where: the graph, as it was named.

    Raises:
        GraphError: naming the operators that it does not have.
    """
    found = Counter(f"{node.domain}::{node.op_type}" for node in model.graph.all_nodes() if _foreign(node, profile))
    if found:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        on_cpu = not any(_foreign(node, PROFILES["cpu"]) for node in model.graph.all_nodes())
        raise GraphError(
            f"target '{profile.name}' has no operators of this graph: {what}",
            where=where,
            remedy="export the model in ONNX's own operators, as `spq-graph export` does"
            + (", or use target cpu" if on_cpu else ""),
        )


def _foreign(node: ir.Node, profile: Profile) -> bool:
    return not is_standard(node) and node.domain not in profile.domains


class VerifyTarget(ir.passes.InPlacePass):
    """Check a model against the rules of the plan's target; changes nothing.

    Calling it raises CheckError, naming what breaks a rule.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.profile = plan.recipe.profile

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wrong = broken_rules(model, self.profile)
        if wrong:
            raise CheckError(
                f"the graph is not what target '{self.profile.name}' takes: {'; '.join(wrong[:5])}",
                remedy="please report this",
            )
        return ir.passes.PassResult(model, modified=False)


def broken_rules(model: ir.Model, profile: Profile) -> list[str]:
    """What in a graph the target does not take, in words."""
    return [text for rule in TARGET_RULES for text in rule(model, profile)]


def operators_are_known(model: ir.Model, profile: Profile) -> Iterator[str]:
    """Operators come from domains that the target has; functions stand only where it takes them, and are ours."""
    for node in model.graph.all_nodes():
        if _foreign(node, profile):
            yield f"{node.name} is {node.domain}::{node.op_type}"
    for function in model.functions.values():
        if not profile.functions or function.domain != DOMAIN:
            yield f"there is a function {function.domain}::{function.name}"


def opset_has_the_types(model: ir.Model, profile: Profile) -> Iterator[str]:
    """The opset is one that has the types and attributes in use."""
    opset = model.graph.opset_imports.get("", 1)
    kinds = {value.dtype for value in model.graph.initializers.values()}
    needed = {
        OLDEST_OPSET: bool(kinds & FP8_TYPES),
        BLOCKED_OPSET: any("block_size" in node.attributes for node in _of(model, *_QDQ)),
        profile.oldest_opset: bool(kinds & INTEGER_TYPES),
    }
    for oldest, used in needed.items():
        if used and opset < oldest:
            yield f"opset {opset} is older than {oldest}"


def zero_points_are_legal(model: ir.Model, profile: Profile) -> Iterator[str]:
    """Integer activations are unsigned, or signed with zero point 0; weights are signed with zero point 0."""
    for node in _of(model, *_QDQ):
        zero = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
        of_weight = weight_of(node.inputs[0]) is not None
        if zero is None:
            continue
        kind, values = zero.tensor.dtype, np.asarray(zero.tensor.numpy()).astype(np.float32)
        signed = profile.signed or of_weight
        if kind in INTEGER_TYPES and (kind is ir.DataType.INT8) is not signed:
            yield f"{node.name} has a zero point of type {kind.name.lower()}"
        if (signed or kind in FP8_TYPES) and values.any():
            yield f"{node.name} has a zero point that is not 0"


def scales_are_legal(model: ir.Model, profile: Profile) -> Iterator[str]:
    """Activations have one scale; weights one for each output channel or block, FP8 ones as the target has it."""
    for node in _of(model, *_QDQ):
        scale = weight_of(node.inputs[1])
        if scale is None:
            yield f"{node.name} has a scale that is not constant"
            continue
        weight = weight_of(node.inputs[0])
        rank = len(scale.shape)
        if weight is None:
            if rank:
                yield f"{node.name} has more than one scale for an activation"
        elif weight.tensor.dtype in FP8_TYPES and rank and not profile.fp8_per_channel:
            yield f"{node.name} has a scale for each channel of an FP8 weight"
        elif rank == 1 and node.attributes.get_int("axis", 1) != len(weight.shape) - 1:
            yield f"{node.name} has scales along another axis than the output channels"


def integers_have_one_form(model: ir.Model, profile: Profile) -> Iterator[str]:
    """Where the target multiplies integers by MatMulInteger, Q/DQ around a product would run in floating point."""
    if profile.forms[Precision.INT8] is not Form.MATMUL_INTEGER:
        for node in _of(model, "MatMulInteger"):
            yield f"{node.name} is a MatMulInteger"
        return
    for node in _of(model, "DequantizeLinear"):
        yield f"{node.name} would dequantize before the product"
    for node in _of(model, "MatMulInteger"):
        kinds = [value.dtype for value in node.inputs if value is not None]
        if kinds != [ir.DataType.INT8, ir.DataType.INT8]:
            yield f"{node.name} multiplies {' by '.join(str(k) for k in kinds)}"


def calls_are_legal(model: ir.Model, _profile: Profile) -> Iterator[str]:
    """Calls of our operators are such as their library takes: functions that stand in for them take others too."""
    yield from wrong_calls(model)


def products_have_kernels(model: ir.Model, profile: Profile) -> Iterator[str]:
    """No product is in bfloat16 where the target has none, and none multiplies two types."""
    for node in _of(model, "MatMul", "Gemm"):
        kinds = {value.dtype for value in node.inputs[:2] if value is not None and value.dtype is not None}
        if len(kinds) > 1:
            yield f"{node.name} multiplies {' by '.join(sorted(kind.name.lower() for kind in kinds))}"
        if ir.DataType.BFLOAT16 in kinds and not profile.allows(Precision.BF16):
            yield f"{node.name} is a product in bfloat16"


def _of(model: ir.Model, *kinds: str) -> Iterator[ir.Node]:
    """Nodes of these standard operators; Q, DQ and MatMulInteger are all ours, since a source with any is refused."""
    return (node for node in model.graph if node.op_type in kinds and is_standard(node))


TARGET_RULES: tuple[Rule, ...] = (
    operators_are_known,
    opset_has_the_types,
    zero_points_are_legal,
    scales_are_legal,
    integers_have_one_form,
    products_have_kernels,
    calls_are_legal,
)
