"""What ran on a target, where it is at hand, held against the plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx
import onnxruntime as ort

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.runtime.sessions import openvino
from spq_graph.runtime.sessions.executed import CONSTANT, Executed, not_as_planned
from spq_graph.runtime.sessions.session import Runner, execute_once
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import CheckError, UsageError
from spq_graph.terms.form import Form
from spq_graph.terms.kernels import INT8_OPERATORS
from spq_graph.terms.logits import Logits
from spq_graph.terms.targets import CPU_PROVIDER, Profile

_TOLD = 8  # sites that an error names
_REMEDY = "keep them with --keep, and please report this"


def refuse_absent(profile: Profile, where: str) -> None:
    """Refuse a target that cannot be run on this machine.

    Args:
        profile: of the target.
        where: what names it.

    Raises:
        UsageError: its runtime is not installed, or finds no device.
    """
    if profile.runtime == "openvino" and not openvino.is_here():
        raise UsageError("OpenVINO is not installed", where=where, remedy="pip install 'spq-graph[openvino]'")
    if profile.runtime == "openvino" or profile.provider == CPU_PROVIDER:
        return
    if profile.provider not in ort.get_available_providers():
        raise UsageError(
            f"ONNX Runtime {ort.__version__} here has no {profile.provider}",
            where=where,
            remedy="pip install 'spq-graph[gpu]'",
        )
    if not _starts(profile.provider or ""):
        raise UsageError(
            f"{profile.provider} does not start here",
            where=where,
            remedy="run this where there is an NVIDIA GPU with its driver, or use target cpu",
        )


def why_absent(profile: Profile) -> str | None:
    """Why a target cannot be run on this machine, and what to do about it; None where it can."""
    try:
        refuse_absent(profile, "")
    except UsageError as error:
        return f"{error.what}: {error.remedy}"
    return None


@cache
def _starts(provider: str) -> bool:
    """Whether a provider that was compiled in finds its device: where it does not, sessions fall back to the CPU."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's own wheels are not where the loader looks
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider, CPU_PROVIDER])
    except Exception:  # the binding raises a class of its own for every status code
        return False
    return provider in session.get_providers()


def runner_on(profile: Profile, path: Path, *, threads: int = 0, logits: Logits | None = None) -> Runner:
    """A session in the runtime that a target stands for.

    Args:
        profile: of the target.
        path: the file.
        threads: intra-op threads; 0 takes all cores.
        logits: which output holds them; None to go by names and shapes.

    Raises:
        SourceError: that runtime is not here, or cannot load the file.
    """
    if profile.runtime == "openvino":
        return openvino.OpenVinoRunner(path, threads=threads, logits=logits)
    return Runner(path, threads=threads, provider=profile.provider or CPU_PROVIDER, logits=logits)


def execute_on(profile: Profile, path: Path, ids: Ids, runner: Runner | None = None) -> Executed:
    """Run one short batch, int64 [1, length], on a target, and list what ran; nothing where the target is absent.

    Args:
        profile: of the target.
        path: the file.
        ids: what is run.
        runner: a session over the file on this target, where there is one and the runtime can tell of it afterwards.

    Raises:
        SourceError: the target cannot load the file.
    """
    absent = why_absent(profile)
    if absent is not None:
        return Executed(absent=absent)
    if profile.runtime == "openvino":
        return openvino.execute_on_openvino(runner or openvino.OpenVinoRunner(path), ids)
    return execute_once(path, ids, profile.provider or CPU_PROVIDER)


def unaccounted(executed: Executed, plan: Plan) -> list[str]:
    """Nodes of sites that the runtime does not list although their precision is proved by what ran."""
    if executed.absent is not None:
        return []
    return [site.node for site in not_as_planned(executed, plan.sites) if site.node not in executed.kernels]


def account(executed: Executed, constant: Collection[str], twins: Mapping[str, Sequence[str]]) -> None:
    """Note why nodes did not run.

    Args:
        executed: what ran, which is added to.
        constant: nodes that give the same for any tokens.
        twins: by node, others that compute the very same: where one of them ran, it ran as that.
    """
    for node in constant:
        executed.folded[node] = CONSTANT
        executed.kernels.setdefault(node, CONSTANT)
    for node, others in twins.items():
        ran = next((other for other in others if other in executed.kernels), None)
        if ran is not None and node not in executed.folded:
            executed.folded[node] = f"the same as {ran}"
            executed.kernels[node] = executed.kernels[ran]
            executed.placed[node] = executed.placed.get(ran, "")


def account_functions(executed: Executed, plan: Plan, twins: Mapping[str, Sequence[str]]) -> None:
    """Say of sites whose INT8 operator ran as the function in the file as which kernel its products did.

    A runtime that writes a function out gives its nodes names that do not tell of which call they are, but as many
    integer products as there are distinct calls can be no others.

    Args:
        executed: what ran, which is added to.
        plan: what was decided.
        twins: by node, others that compute the very same, of which a runtime runs one.
    """
    sites = (site for form in (Form.BY_TOKEN, Form.WITH_BRANCH) for site in plan.in_form(form))
    calls = [site.node for site in sites if site.node not in executed.kernels]
    distinct = [node for place, node in enumerate(calls) if not {*calls[:place]}.intersection(twins.get(node, ()))]
    if calls and executed.in_functions(INT8_OPERATORS, "MatMulInteger") >= len(distinct):
        executed.kernels.update(dict.fromkeys(calls, "MatMulInteger"))


def check_executed(executed: Executed, plan: Plan, where: str) -> None:
    """Check that every site ran as its plan and its target say; nothing to check where the target is absent.

    Raises:
        CheckError: naming every site that ran as something else.
    """
    if executed.absent is not None:
        return
    profile = plan.recipe.profile
    if profile.provider == "TensorrtExecutionProvider":
        _check_placed(executed, plan, where)
        return
    if wrong := not_as_planned(executed, plan.integer_sites):
        ran, remedy = [_ran(site, executed) for site in wrong], f"the runtime did not fuse them; {_REMEDY}"
        _refuse(ran, "planned as integers did not run as integer kernels", where, remedy)
    if wrong := not_as_planned(executed, [s for s in plan.sites if s.precision.bits is None]):
        _refuse(_with_places(wrong, executed), "planned with integer weights did not run so", where)
    if profile.provider != CPU_PROVIDER and profile.provider is not None:
        _check_placed(executed, plan, where)


def _check_placed(executed: Executed, plan: Plan, where: str) -> None:
    """An accelerator's provider leaves to others what it has no kernel for, without a word."""
    provider = plan.recipe.profile.provider
    eight_bits = [s for s in plan.sites if s.precision.bits is not None or s.precision.is_fp8]
    if wrong := [s for s in eight_bits if executed.placed.get(s.node, provider) != provider]:
        _refuse(_with_places(wrong, executed), f"did not run on {provider}", where)


def _with_places(wrong: list[SitePlan], executed: Executed) -> list[str]:
    """What ran at sites, and where, in words."""
    return [f"{_ran(site, executed)} on {executed.placed.get(site.node, 'none')}" for site in wrong]


def _ran(site: SitePlan, executed: Executed) -> str:
    return f"{site.key} (node {site.node}): {executed.kernels.get(site.node, 'not found')}"


def _refuse(ran: list[str], what: str, where: str, remedy: str = _REMEDY) -> None:
    more = f" and {len(ran) - _TOLD} more" if len(ran) > _TOLD else ""
    raise CheckError(f"{len(ran)} sites {what}: {'; '.join(ran[:_TOLD])}{more}", where=where, remedy=remedy)
