"""What really ran, as ONNX Runtime's profile tells it, and which of it is not what was planned."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.documents.report import OperatorRun
from spq_graph.runtime.sessions.library import library_info
from spq_graph.terms.form import OWN, Form
from spq_graph.terms.kernels import LOOKUP_KERNELS
from spq_graph.terms.site import Role

CONSTANT = "constant"
_INLINED = re.compile(r"_inlfunc_([A-Za-z0-9]+)_")


@dataclass(slots=True)
class Executed:
    """What a runtime ran, read back from it after one short batch.

    Attributes:
        kernels: operator type by node name, after all of the runtime's fusions.
        ops: how many nodes of each operator type ran.
        providers: how many nodes ran on each provider.
        placed: provider by node name.
        absent: why nothing ran: the target is not on this machine. None where it is.
        by_provider: how many of each operator type ran on each provider.
        folded: by node name, why it need not run: it gives the same for any tokens, or what another gives.
    """

    kernels: dict[str, str] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    providers: dict[str, int] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)
    absent: str | None = None
    by_provider: dict[str, dict[str, int]] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)

    def operator_run(self, form: Form, plan: Plan) -> OperatorRun | None:
        """How a plan's sites in the form of one of our operators ran; None without any, and where nothing was run."""
        ran = [self.kernels.get(site.node, "").startswith(OWN[form]) for site in plan.in_form(form)]
        if not ran or self.absent is not None:
            return None
        info = library_info()
        library = f"{info['version']}, {info['isa']}" if info is not None else None
        return OperatorRun(sites=len(ran), kernels=sum(ran), library=library)

    def in_functions(self, operators: Collection[str], kernel: str) -> int:
        """How many of a kernel ran in functions that stand for one of these operators."""
        return sum(
            ran == kernel and any(name in operators for name in _function_of(node))
            for node, ran in self.kernels.items()
        )


def executed_by(session: ort.InferenceSession) -> Executed:
    """End a session's profile, and list the kernels that it tells of; each node once, however often it ran."""
    return executed_in([Path(session.end_profiling())])


def executed_in(profiles: Iterable[Path]) -> Executed:
    """The kernels that profiles of one model's sessions tell of; each node once, however often it ran."""
    found = Executed()
    by_provider: dict[str, Counter[str]] = {}
    for number, event in _events(profiles):
        arguments = event.get("args", {})
        if event.get("cat") != "Node" or "op_name" not in arguments:
            continue
        name = event["name"].removesuffix("_kernel_time")
        if _function_of(name):  # which begins to count anew in every session
            name = f"{name} of {number}"
        if name not in found.kernels:
            found.kernels[name] = arguments["op_name"]
            found.placed[name] = arguments.get("provider", "")
            by_provider.setdefault(found.placed[name], Counter())[arguments["op_name"]] += 1
    found.ops = dict(sorted(Counter(found.kernels.values()).items()))
    found.by_provider = {provider: dict(sorted(ops.items())) for provider, ops in sorted(by_provider.items())}
    found.providers = {provider: sum(ops.values()) for provider, ops in found.by_provider.items()}
    return found


def _events(profiles: Iterable[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, path in enumerate(profiles):
        for event in json.loads(path.read_text(encoding="utf-8")):
            yield number, event


def _function_of(name: str) -> tuple[str, ...]:
    """The functions that a node was written out of, outermost first: ONNX Runtime begins the node's name with them."""
    return tuple(_INLINED.findall(name))


def not_as_planned(executed: Executed, sites: Iterable[SitePlan]) -> list[SitePlan]:
    """The sites that did not run as one of the kernels by which their precision is proved, but for constants."""
    proved = [s for s in sites if s.precision.row.kernels and executed.kernels.get(s.node) != CONSTANT]
    return [s for s in proved if executed.kernels.get(s.node) not in _kernels_of(s)]


def _kernels_of(site: SitePlan) -> frozenset[str]:
    return LOOKUP_KERNELS if site.role is Role.EMBEDDING else site.precision.row.kernels
