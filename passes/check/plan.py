"""The graph equals the plan, Q and DQ come in pairs, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.base.marks import ADDED, DOMAIN, OLDEST_IR, VERSION, is_ours
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import weight_of
from spq_graph.passes.check.lookups import differing_lookup
from spq_graph.passes.check.outline import Line, Outline, changed, line_of
from spq_graph.passes.check.surroundings import Belonging, misplaced, surroundings
from spq_graph.passes.forms.branch import branch_nodes
from spq_graph.passes.forms.differs import differing_weight, differs
from spq_graph.passes.forms.functions import own_functions
from spq_graph.passes.forms.lookup import tied_to
from spq_graph.passes.forms.registry import FORM_RULES
from spq_graph.passes.forms.rules import Wanted
from spq_graph.terms.errors import CheckError
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import CONTRIB

_TOLD = 5
_INSERTED = {DOMAIN: VERSION, CONTRIB: 1}  # domains of operators that forms have


class VerifyPlan(ir.passes.InPlacePass):
    """Check a model against its plan and its source; changes nothing.

    Every site is in the form that the plan asks for, of the weight that the source has there and with the scales that
    follow from it; every other node, constant, input and output is what it was; and nothing stands in between.

    Args:
        plan: what should be there.
        before: `outline` of the model before the plan was applied, but for its prefix and its factors for channels.

    Calling it raises CheckError, naming what differs.
    """

    def __init__(self, plan: Plan, before: Outline) -> None:
        super().__init__()
        self.plan = plan
        self.before = before
        self.tied, self.peels, self.scales = tied_to(plan, before.weights), plan.peels, plan.scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        belonging = Belonging()
        wrong = list(self._differing_sites(model, belonging))
        names = {site.node for site in self._written}
        wrong += _unpaired(model.graph, self.plan.recipe.profile.forms[Precision.INT8])
        wrong += changed(self.before, model, names, belonging.constants)
        wrong += _differing_imports(self.before, model)
        wrong += _strangers(model.graph, names, belonging.nodes)
        wrong += _differing_functions(model, self.before)
        if wrong:
            more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
            raise CheckError(
                f"the graph is not what the plan says: {'; '.join(wrong[:_TOLD])}{more}", remedy="please report this"
            )
        return ir.passes.PassResult(model, modified=False)

    def _wanted(self, site: SitePlan) -> Wanted:
        recipe = self.plan.recipe
        tied = self.tied.get(site.key)
        return Wanted(site, recipe, recipe.profile, self.before.opset, self.peels, self.scales, tied)

    @property
    def _written(self) -> list[SitePlan]:
        """Sites that are not as the graph has them already."""
        weights = self.before.weights
        return [
            s for s in self.plan.sites if s.node not in weights or not self._wanted(s).is_as_it_was(weights[s.node])
        ]

    def _differing_sites(self, model: ir.Model, belonging: Belonging) -> Iterator[str]:
        """What is wrong at the sites; what belongs to them is collected on the way."""
        nodes = {node.name: node for node in model.graph}
        lines = {line.name: line for line in self.before.lines}
        for site in self.plan.sites:
            node, line = nodes.get(site.node), lines.get(site.node)
            if node is None:
                yield f"{site.key}: its node {site.node} is gone"
                continue
            operand = self.before.weights.get(site.node)
            if line is None or operand is None:
                yield f"{site.key}: the source has no such site"
                continue
            text = self._differing(node, self._wanted(site), line, operand, belonging)
            if text is not None:
                yield f"{site.key}: {text}"

    def _differing(
        self, node: ir.Node, wanted: Wanted, line: Line, operand: Operand, belonging: Belonging
    ) -> str | None:
        """What is wrong at one site, told from the coarse to the fine."""
        if wanted.is_as_it_was(operand):
            # That it is what it was is compared with all nodes that no site changes; here it is told what it became.
            return differs(node, wanted) if line_of(node) != line else None
        if not self.before.holds(operand):
            return "its weight was exchanged while the plan was applied"
        if wanted.site.role is Role.EMBEDDING:
            return differing_lookup(node, wanted, operand, line, self.before.axes.get(line.name, 0), belonging)
        if len(node.inputs) < 2:
            return f"its product reads {len(node.inputs)} values"
        around = surroundings(node, wanted, line)
        for part in (node, *around.activation, *around.weight, *around.result, *branch_nodes(around.result)):
            belonging.add(part)
        return (
            differs(node, wanted)
            or misplaced(node, around, wanted, operand, line)
            or differing_weight(node, wanted, operand)
            or FORM_RULES[wanted.form].differing_branch(node, around.activation, around.result, wanted, operand)
        )


def _differing_functions(model: ir.Model, before: Outline) -> Iterator[str]:
    """Whether our operators' functions are there, and as we write them, exactly where something calls them."""
    called = {node.op_type for node in model.graph.all_nodes() if is_ours(node)}
    own = {f.identifier(): f for f in own_functions(model.graph.opset_imports.get("", 1)).values()}
    for name, wanted in own.items():
        found = model.functions.get(name)
        if (found is not None) is not (wanted.name in called):
            yield f"function {name[0]}::{name[1]} is {'missing' if found is None else 'there, but nothing calls it'}"
        elif found is not None and ir.to_proto(found) != ir.to_proto(wanted):
            yield f"function {name[0]}::{name[1]} is not ours"
    for name in {**before.functions, **model.functions}:
        if name not in own and not _same_function(before.functions.get(name), model.functions.get(name)):
            yield f"function {name[0]}::{name[1]} is not the source's"


def _differing_imports(before: Outline, model: ir.Model) -> Iterator[str]:
    """Whether the model imports what it did, and beside that only what was inserted asks for."""
    inserted = {node.domain for node in model.graph if node.domain in _INSERTED}
    imports, allowed = model.graph.opset_imports, {domain: _INSERTED[domain] for domain in inserted}
    for domain in {**before.imports, **imports}:
        old, new = before.imports.get(domain), imports.get(domain)
        if old != new and not (old is None and allowed.get(domain) == new):
            yield f"the opset{f' of {domain}' if domain else ''} changed from {old} to {new}"
    oldest = max(before.ir_version, OLDEST_IR) if DOMAIN in inserted else before.ir_version
    if model.ir_version != oldest:
        yield f"the IR version is {model.ir_version}, where it is to be {oldest}"


def _same_function(one: ir.Function | None, other: ir.Function | None) -> bool:
    return one is other or (one is not None and other is not None and ir.to_proto(one) == ir.to_proto(other))


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _unpaired(graph: Iterable[ir.Node], integer: Form) -> list[str]:
    wrong = []
    reader = "MatMulInteger" if integer is Form.MATMUL_INTEGER else "DequantizeLinear"
    for node in graph:
        if ADDED not in node.metadata_props:  # the graph's own are its own business
            continue
        if node.op_type == "QuantizeLinear":
            users = {use.node.op_type for use in node.outputs[0].uses()}
            if users != {reader}:
                wrong.append(f"{node.name} feeds {sorted(users) or 'nothing'} instead of {reader}")
        elif node.op_type == "DequantizeLinear" and weight_of(node.inputs[0]) is None:
            source = _producer(node.inputs[0])
            if source is None or source.op_type != "QuantizeLinear" or source.inputs[1:] != node.inputs[1:]:
                wrong.append(f"{node.name} does not undo a QuantizeLinear")
    return wrong


def _strangers(graph: Iterable[ir.Node], sites: set[str], belonging: set[ir.Node]) -> list[str]:
    """Nodes that pass for inserted ones, but for no site of the plan, or for one whose form does not have them."""
    marked = ((node, node.metadata_props[ADDED]) for node in graph if ADDED in node.metadata_props)
    return [
        f"{node.name} was inserted for {site!r}, which " + ("does not have it" if site in sites else "is no site")
        for node, site in marked
        if node not in belonging
    ][:3]
