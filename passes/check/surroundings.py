"""What of a graph belongs to a site: the nodes that were inserted around its product, and the constants that they read.

What a form inserts, and in which order, follows from the plan and the source alone: so a node which only carries our
mark is found, and so is one that lost an attribute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import holds, is_standard
from spq_graph.passes.check.outline import Line
from spq_graph.passes.forms.registry import FORM_RULES
from spq_graph.passes.forms.rules import Wanted
from spq_graph.passes.forms.steps import Step
from spq_graph.terms.form import Form

_LONGEST = 8  # nodes between a product and what it reads or gives, of which no form inserts as many


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
        gives: name and element type of the value at the end of the last.
    """

    activation: list[ir.Node]
    weight: list[ir.Node]
    result: list[ir.Node]
    reads: str
    gives: tuple[str, ir.DataType | None]


def surroundings(node: ir.Node, wanted: Wanted, line: Line) -> Surroundings:
    """Walk from a product over what was inserted, as far as the values that it read and gave before."""
    activation, read = _up(node.inputs[0], wanted.site.input)
    weight, _ = _up(node.inputs[1], "") if len(node.inputs) > 1 else ([], None)
    result = behind(node, line)
    given = result[-1].outputs[0] if result else node.outputs[0]
    return Surroundings(activation, weight, result, _name(read), (_name(given), given.dtype))


def behind(node: ir.Node, line: Line) -> list[ir.Node]:
    """What was inserted between a node and the value that it gave before, as far as that is one after the other."""
    found: list[ir.Node] = []
    given = node.outputs[0]
    while given.name != line.gives[0] and len(found) < _LONGEST:
        users = [use.node for use in given.uses()]
        if len(users) != 1 or ADDED not in users[0].metadata_props:
            break
        found.append(users[0])
        given = users[0].outputs[0]
    return found


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


def misplaced(node: ir.Node, found: Surroundings, wanted: Wanted, operand: Operand, line: Line) -> str | None:
    """How a product and what stands around it differ from what its form has there, in words; None where they do not."""
    if found.reads != wanted.site.input:
        return f"it reads {found.reads}, the plan says {wanted.site.input}"
    if found.gives[0] != line.gives[0]:
        return f"it gives {found.gives[0]}, and gave {line.gives[0]}"
    if line.types[0] not in (None, found.gives[1]):
        return f"its result is {found.gives[1]}, and was {line.types[0]}"
    if (text := FORM_RULES[wanted.form].product(wanted).differs(node)) is not None:
        return f"its product is {text}"
    return _unlike_form(found, wanted, operand, line)


def _unlike_form(found: Surroundings, wanted: Wanted, operand: Operand, line: Line) -> str | None:
    around = FORM_RULES[wanted.form].around(wanted, operand)
    result, bias = found.result, _bias_of(line)
    if wanted.form is Form.QDQ and result and result[0].op_type in ("Reshape", "Sum"):
        if not _changes_nothing(result[0]):
            return f"{result[0].name} changes what it stands behind"
        result = result[1:]
    for what, nodes, steps in (
        ("in front of its activation", found.activation, around.activation),
        ("in front of its weight", found.weight, around.weight),
        ("behind its product", result, [*around.result, *([Step("Add", 2)] if bias else [])]),
    ):
        if (text := _unlike(nodes, steps)) is not None:
            return f"{what} {text}"
    if bias and (added := _name(result[-1].inputs[1])) != bias:
        return f"its bias is {added}, and was {bias}"
    return None


def _bias_of(line: Line) -> str:
    """Name of the bias that a product added before; empty where it added none."""
    return line.reads[2] if len(line.reads) > 2 else ""


def _unlike(nodes: list[ir.Node], steps: list[Step]) -> str | None:
    for node, step in zip(nodes, steps, strict=False):
        if (text := step.differs(node)) is not None:
            return f"stands {text}"
    if len(nodes) == len(steps):
        return None
    more = [node.name or "" for node in nodes[len(steps) :]]
    return f"stands {more[0]}, which its form does not have" if more else f"no {steps[len(nodes)].op_type} stands"


def _changes_nothing(node: ir.Node) -> bool:
    """Whether a Reshape keeps every axis, or a Sum has one term: what parts a product from an Add."""
    if node.attributes or not is_standard(node):
        return False
    if node.op_type == "Sum":
        return len(node.inputs) == 1
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    zeros = ir.Tensor(np.zeros(0 if shape is None else len(shape), dtype=np.int64))
    return len(node.inputs) == 2 and holds(node.inputs[1], zeros)
