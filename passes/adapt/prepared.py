"""The one chain from a file to a graph that can be edited and run, and how far along it each reader goes.

    load_graph -> Canonicalize (all of CANON) -> Disown -> WidenBfloat16 -> adapting(profile) -> what the reader wants

Who looks at a file as it is stops after the first pass; who runs or quantizes it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from spq_graph.passes.adapt.attention import FuseAttention
from spq_graph.passes.adapt.bfloat16 import WidenBfloat16
from spq_graph.passes.adapt.disown import Disown
from spq_graph.passes.adapt.heads import AppendInAttention, HeadsSideBySide
from spq_graph.passes.adapt.lift import LiftOpset
from spq_graph.passes.adapt.norms import DivideNorms
from spq_graph.passes.adapt.rotary import FuseRotary
from spq_graph.passes.base.own_calls import refuse_wrong_calls
from spq_graph.passes.base.run import Pass, run
from spq_graph.passes.canon.canonicalize import Canonicalize, is_anothers, listed_names
from spq_graph.passes.canon.lift_old import opset_of
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.targets import Profile

# One form for any source, with the same numbers; then what lets ONNX Runtime's CPU provider compute it, where sums may
# be rounded less than they were.
PREPARE: tuple[type[Pass], ...] = (Canonicalize, Disown, WidenBfloat16)


def adapting(profile: Profile, opset: int = 0) -> Sequence[Pass]:
    """What a target's runtime asks of a graph, with the same numbers but for the order of sums.

    Args:
        profile: of the target.
        opset: that what is to be written needs, where that is newer than others.
    """
    lift = (LiftOpset(opset),) if opset else ()
    norms = (DivideNorms(),) if profile.divided_norms else ()
    attention = (FuseAttention(), FuseRotary(), AppendInAttention(), HeadsSideBySide())
    return (*lift, *norms, *(attention if profile.fused_attention else ()))


@dataclass(frozen=True, slots=True)
class Prepared:
    """The graph of one file, canonical and widened; read once, and copied for everybody who edits it.

    Attributes:
        path: the file.
        graph: not to be edited. Weights stay in the file, mapped.
        runs: whether ONNX Runtime's CPU provider runs the file as it is: it holds no bfloat16, and every node has a
            name that nothing else has.
        lifted_from: its opset, where that was too old for what is inserted and the graph was lifted; None otherwise.
    """

    path: Path
    graph: ir.Model
    runs: bool
    lifted_from: int | None = None
    _adapted: dict[tuple[bool, bool, int], ir.Model] = field(default_factory=dict, repr=False, compare=False)

    def copy(self) -> ir.Model:
        """A graph of one's own to edit; weights are shared."""
        return self.graph.clone()

    def adapted(self, profile: Profile, opset: int = 0) -> ir.Model:
        """A copy in the form that a target's runtime asks for, as `adapting` has it; worked out once.

        What the passes make is then the same in all copies, also where what they need is older than the graph.
        """
        opset = opset if opset > opset_of(self.graph) else 0
        key = profile.divided_norms, profile.fused_attention, opset
        if key not in self._adapted:
            model = self.copy()
            run(model, adapting(profile, opset))
            self._adapted[key] = model
        return self._adapted[key].clone()


def canonical(path: Path) -> ir.Model:
    """The graph of a file in the form that passes expect, otherwise as it is.

    Raises:
        SourceError, GraphError: as `load_graph`.
    """
    model = load_graph(path)
    run(model, [Canonicalize()])
    return model


def prepared(path: Path) -> Prepared:
    """Read a file for whoever runs or quantizes it.

    Raises:
        SourceError, GraphError: as `load_graph`.
    """
    return prepare(path, load_graph(path))


def prepare(path: Path, model: ir.Model) -> Prepared:
    """As `prepared`, of a graph that was read already, in place.

    Args:
        path: the file.
        model: what `load_graph` gave of it.

    Raises:
        CheckError, GraphError: as the passes.
    """
    refuse_wrong_calls(model, str(path))
    names = [node.name for node in model.graph if node.name]
    listed = listed_names(model.graph)
    repeated = len(set(names)) < len(names) or any(is_anothers(n, listed) for n in model.graph)
    opset = opset_of(model)
    changed = [step for step in PREPARE if run(model, [step()])]
    refuse_wrong_calls(model, str(path))  # some may have stood in a function
    lifted_from = opset if opset_of(model) > opset else None
    return Prepared(path, model, not (WidenBfloat16 in changed or repeated), lifted_from)
