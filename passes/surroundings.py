"""What of a graph belongs to a site: the nodes that were inserted around its product, and the constants that they read.

A form inserts the same nodes at every site, in the same order. Here that order is written down a second time, from the
plan and the source alone, so that a node which only carries our mark is found, and so is one that lost an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx_ir as ir

from spq_graph.passes.editor import ADDED, Operand
from spq_graph.passes.forms import HALVES, block_of
from spq_graph.passes.outline import Line
from spq_graph.passes.values import is_standard
from spq_graph.plan import SitePlan
from spq_graph.recipe import Precision, Recipe
from spq_graph.targets import Form

_LONGEST = 8  # nodes between a product and what it reads or gives, of which no form inserts as many


class Step(NamedTuple):
    """An inserted node: its operator, and its attributes."""

    op_type: str
    attributes: Mapping[str, Any] = {}


@dataclass(slots=True)
class Belonging:
    """What belongs to the sites of a plan."""

    nodes: set[ir.Node] = field(default_factory=set)
    constants: set[ir.Value] = field(default_factory=set)

    def add(self, node: ir.Node) -> None:
        """Take a node, and the constants that it reads."""
        self.nodes.add(node)
        self.constants.update(v for v in node.inputs if v is not None and v.producer() is None)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The inserted nodes around a product.

    Attributes:
        activation: from the product to what the site reads, in this order.
        weight: from the product to its constant.
        result: from the product to what the site gives.
        reads: name of the value at the end of the first.
        gives: name of the value at the end of the last.
    """

    activation: list[ir.Node]
    weight: list[ir.Node]
    result: list[ir.Node]
    reads: str
    gives: str


def surroundings(node: ir.Node, site: SitePlan, line: Line) -> Surroundings:
    """Walk from a product over what was inserted, as far as the values that it read and gave before."""
    activation, read = _up(node.inputs[0], site.input)
    weight, _ = _up(node.inputs[1], "") if len(node.inputs) > 1 else ([], None)
    result: list[ir.Node] = []
    given = node.outputs[0]
    while given.name != line.gives[0] and len(result) < _LONGEST:
        users = [use.node for use in given.uses()]
        if len(users) != 1 or ADDED not in users[0].metadata_props:
            break
        result.append(users[0])
        given = users[0].outputs[0]
    return Surroundings(activation, weight, result, _name(read), _name(given))


def _up(value: ir.Value | None, end: str) -> tuple[list[ir.Node], ir.Value | None]:
    found: list[ir.Node] = []
    while value is not None and value.name != end and len(found) < _LONGEST:
        node = value.producer()
        if node is None or ADDED not in node.metadata_props:
            break
        found.append(node)
        value = node.inputs[0]
    return found, value


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def misplaced(
    found: Surroundings, site: SitePlan, operand: Operand, recipe: Recipe, line: Line, opset: int
) -> str | None:
    """How what stands around a product differs from what its form inserts, in words; None where it does not."""
    if found.reads != site.input:
        return f"it reads {found.reads}, the plan says {site.input}"
    if found.gives != line.gives[0]:
        return f"it gives {found.gives}, and gave {line.gives[0]}"
    form = recipe.profile.forms[site.precision]
    result = found.result
    if form is Form.QDQ and result and result[0].op_type in ("Reshape", "Sum"):
        if (text := _differing_shield(result[0])) is not None:
            return text
        result = result[1:]
    for what, nodes, wanted in (
        ("in front of its activation", found.activation, _activation(form, site, operand)),
        ("in front of its weight", found.weight, _weight(form, site, operand, recipe, opset)),
        ("behind its product", result, _result(form, site, operand, line)),
    ):
        if (text := _unlike(nodes, wanted)) is not None:
            return f"{what} {text}"
    if result and result[-1].op_type == "Add":
        bias = next((_name(v) for v in reversed(result[-1].inputs)), "")
        if bias != line.reads[2]:
            return f"its bias is {bias}, and was {line.reads[2]}"
    return None


def _unlike(nodes: list[ir.Node], wanted: list[Step]) -> str | None:
    for node, step in zip(nodes, wanted, strict=False):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type != step.op_type or not is_standard(node):
            return f"stands {node.name}, a {node.op_type}, where its form has a {step.op_type}"
        if attributes != step.attributes:
            return f"stands {node.name} with other attributes than its form has: {attributes}"
    if len(nodes) == len(wanted):
        return None
    more = [node.name or "" for node in nodes[len(wanted) :]]
    return f"stands {more[0]}, which its form does not have" if more else f"no {wanted[len(nodes)].op_type} stands"


def _differing_shield(node: ir.Node) -> str | None:
    """Whether what parts a product from an Add changes anything."""
    zeros = len(node.inputs) == 1 or not node.attributes
    if node.op_type == "Reshape" and len(node.inputs) == 2 and zeros:
        shape = node.inputs[1].const_value if node.inputs[1] is not None else None
        zeros = shape is not None and not shape.numpy().any()
    return None if zeros and is_standard(node) else f"{node.name} changes what it stands behind"


def _cast(to: ir.DataType) -> Step:
    return Step("Cast", {"to": int(to)})


def _widens(form: Form, operand: Operand) -> bool:
    """Whether a product is computed in float32 where the graph is not."""
    if form in (Form.STORED, Form.COMPUTED):
        return False
    as_it_is = {ir.DataType.FLOAT} | ({ir.DataType.FLOAT16} if form is Form.OPERATOR else set())
    return operand.dtype not in as_it_is


def _activation(form: Form, site: SitePlan, operand: Operand) -> list[Step]:
    steps = {
        Form.QDQ: [Step("DequantizeLinear"), Step("QuantizeLinear")],
        Form.MATMUL_INTEGER: [Step("QuantizeLinear")],
    }.get(form, [])
    if form is Form.COMPUTED:
        return [_cast(HALVES[site.precision])]
    if site.precision.bits is not None and site.precision.bits < 8:
        steps = [*steps, Step("Clip")]
    return [*steps, _cast(ir.DataType.FLOAT)] if _widens(form, operand) else steps


def _weight(form: Form, site: SitePlan, operand: Operand, recipe: Recipe, opset: int) -> list[Step]:
    if form in (Form.STORED, Form.AS_IS):
        return [_cast(ir.DataType.FLOAT if site.precision is Precision.FP32 else operand.dtype)]
    if form is Form.WEIGHT and not site.precision.is_fp8:
        block = block_of(site, opset)
        return [Step("DequantizeLinear", {"axis": 0, "block_size": block} if block else {"axis": 1})]
    if form in (Form.QDQ, Form.WEIGHT):
        whole = recipe.weights == "per_tensor" or (site.precision.is_fp8 and not recipe.profile.fp8_per_channel)
        return [Step("DequantizeLinear", {} if whole else {"axis": 1})]
    return []


def _result(form: Form, site: SitePlan, operand: Operand, line: Line) -> list[Step]:
    steps = [_cast(ir.DataType.FLOAT), Step("Mul")] if form is Form.MATMUL_INTEGER else []
    if form is Form.COMPUTED or _widens(form, operand):
        steps = [*steps, _cast(operand.dtype)]
    return [*steps, Step("Add")] if has_bias(line) else steps


def has_bias(line: Line) -> bool:
    """Whether a product added a bias before."""
    return len(line.reads) > 2 and bool(line.reads[2])
