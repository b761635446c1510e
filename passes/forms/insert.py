"""Insert what a plan decided, in the form that its target executes."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.base.conditions import NamedPass, promise
from spq_graph.passes.base.editor import Editor, drop_unused
from spq_graph.passes.base.marks import ADDED, OLDEST_IR, is_ours
from spq_graph.passes.base.operand import operand_of
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.forms.functions import own_functions
from spq_graph.passes.forms.lookup import LOOKUPS, tied_to
from spq_graph.passes.forms.registry import FORM_RULES
from spq_graph.passes.forms.rules import Place, Wanted
from spq_graph.terms.errors import GraphError, SpqError
from spq_graph.terms.site import Role
from spq_graph.terms.targets import Profile


class InsertPrecisions(NamedPass):
    """Give every site of a plan its precision in the form of what runs it; nothing else is touched.

    Args:
        plan: what was decided.
        profile: what runs it: the plan's target, or its emulation, which has the same quantizers, for measuring what a
            plan for another device costs, and never for delivery.
        stock: what was made of weights for other graphs of the same source; None for nothing.

    Calling it raises GraphError where a site of the plan is not in the graph, or cannot take its precision.
    """

    def __init__(self, plan: Plan, profile: Profile, stock: Stock | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.profile = profile
        self.stock = stock or Stock()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        require_opset(model, self.plan)
        require_one_range(self.plan)
        editor, opset = Editor(model, stock=self.stock), model.graph.opset_imports.get("", 1)
        replaced: list[ir.Value] = []
        peels, scales = self.plan.peels, self.plan.scales
        nodes = {name: editor.nodes[name] for site in self.plan.sites if (name := site.node) in editor.nodes}
        tied = tied_to(self.plan, {name: weight for name, n in nodes.items() if (weight := operand_of(n)) is not None})
        # In the graph's order: what several sites share stands in front of the first of them.
        order = {name: index for index, name in enumerate(editor.nodes)}
        for site in sorted(self.plan.sites, key=lambda s: order.get(s.node, -1)):
            node, operand = editor.find(site)
            old = node.inputs[0 if site.role is Role.EMBEDDING else 1]
            wanted = Wanted(site, self.plan.recipe, self.profile, opset, peels, scales, tied.get(site.key))
            try:
                if not wanted.is_as_it_was(operand):
                    rules = LOOKUPS.get(wanted.form) or FORM_RULES[wanted.form]
                    rules.insert(Place(editor, node, operand, wanted))
            except SpqError as cause:
                raise type(cause)(cause.what, where=cause.where or site.key, remedy=cause.remedy) from cause
            if old is not None:
                replaced.append(old)
        drop_unused(model, replaced)
        _complete(model, opset)
        return ir.passes.PassResult(model, modified=bool(self.plan.sites))

    def ensures(self, model: ir.Model) -> None:
        """Every inserted node says for which site it is."""
        sites = {site.node for site in self.plan.sites}
        lost = [n.name for n in model.graph if n.metadata_props.get(ADDED, next(iter(sites), "")) not in sites]
        promise(f"{lost[0]} was inserted for no site of the plan" if lost and sites else None)


def _complete(model: ir.Model, opset: int) -> None:
    """Give calls of our operators that the source has their functions: it may have none, and run with the library."""
    if called := {node.op_type for node in model.graph.all_nodes() if is_ours(node)}:
        model.ir_version = max(model.ir_version, OLDEST_IR)
    for function in (own_functions(opset)[name] for name in sorted(called)):
        model.functions.setdefault(function.identifier(), function)


def require_one_range(plan: Plan) -> None:
    """Check that sites which one quantizer serves have one range: a plan can be written by hand.

    Raises:
        GraphError: they have two.
    """
    first: dict[tuple[str, str], SitePlan] = {}
    for site in plan.sites:
        if site.range is None or not site.precision.needs_range:
            continue
        other = first.setdefault((site.input, site.precision), site)
        if other.range != site.range:
            raise GraphError(
                f"the plan has another range for it than for {other.key}, which reads the same activation",
                where=site.key,
                remedy="make the plan again with `spq-graph plan`",
            )


def require_opset(model: ir.Model, plan: Plan) -> None:
    """Check that the graph's opset can say what the plan wants.

    Raises:
        GraphError: the opset is too old.
    """
    opset, oldest = model.graph.opset_imports.get("", 1), plan.recipe.profile.oldest_opset
    if opset < oldest and any(site.precision.bits is not None for site in plan.sites):
        raise GraphError(
            f"the graph has opset {opset}, where DequantizeLinear has no scale per channel",
            remedy=f"export the model again with opset {oldest} or later",
        )
