"""What ran on a target, where it is at hand, held against the plan."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import onnx
import onnxruntime as ort

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.runtime.sessions import openvino
from spq_graph.runtime.sessions.executed import Executed, check_integer_sites, not_as_planned
from spq_graph.runtime.sessions.session import CPU, Runner, execute_once
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import CheckError
from spq_graph.terms.targets import Profile


def why_absent(profile: Profile) -> str | None:
    """Why a target cannot be run on this machine; None where it can."""
    if profile.runtime == "openvino":
        return None if openvino.is_here() else "OpenVINO is not installed: pip install 'spq-graph[openvino]'"
    if profile.provider == CPU:
        return None
    if profile.provider not in ort.get_available_providers():
        return f"ONNX Runtime {ort.__version__} here has no {profile.provider}: pip install 'spq-graph[gpu]'"
    return None if _starts(profile.provider or "") else f"{profile.provider} does not start here: is there a GPU?"


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
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider, CPU])
    except Exception:  # the binding raises a class of its own for every status code
        return False
    return provider in session.get_providers()


def runner_on(profile: Profile, path: Path, *, threads: int = 0) -> Runner:
    """A session in the runtime that a target stands for.

    Raises:
        SourceError: that runtime is not here, or cannot load the file.
    """
    if profile.runtime == "openvino":
        return openvino.OpenVinoRunner(path, threads=threads)
    return Runner(path, threads=threads, provider=profile.provider or CPU)


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
    return execute_once(path, ids, profile.provider or CPU)


def check_executed(executed: Executed, plan: Plan, where: str) -> None:
    """Check that every site ran as its plan and its target say; nothing to check where the target is absent.

    Raises:
        CheckError: naming every site that ran as something else.
    """
    if executed.absent is not None:
        return
    profile = plan.recipe.profile
    if profile.provider == "TensorrtExecutionProvider":
        _check_placed(executed, _written(plan.sites), profile, where)
        return
    check_integer_sites(executed, plan.integer_sites, where)
    wrong = not_as_planned(executed, [s for s in plan.sites if s.precision.row.by_block])
    if wrong:
        _refuse(wrong, executed, "planned with integer weights did not run so", where)
    if profile.provider != CPU and profile.provider is not None:
        _check_placed(executed, _written(plan.sites), profile, where)


def _written(sites: Iterable[SitePlan]) -> list[SitePlan]:
    return [s for s in sites if s.precision.bits is not None or s.precision.is_fp8]


def _check_placed(executed: Executed, sites: list[SitePlan], profile: Profile, where: str) -> None:
    """An accelerator's provider leaves to others what it has no kernel for, without a word."""
    wrong = [s for s in sites if executed.placed.get(s.node, profile.provider) != profile.provider]
    if wrong:
        _refuse(wrong, executed, f"did not run on {profile.provider}", where)


def _refuse(wrong: list[SitePlan], executed: Executed, what: str, where: str) -> None:
    named = "; ".join(
        f"{s.key} (node {s.node}): {executed.kernels.get(s.node, 'not found')} on {executed.placed.get(s.node, 'none')}"
        for s in wrong[:8]
    )
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    raise CheckError(
        f"{len(wrong)} sites {what}: {named}{more}", where=where, remedy="keep them with --keep, and please report this"
    )
