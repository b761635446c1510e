"""Which operators and opsets a runtime has, asked of the one that is installed: no list of ours would stay true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from spq_graph.documents.examination import Holds
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.sessions.opening import session_options
from spq_graph.runtime.sessions.openvino import without_rule
from spq_graph.terms.targets import CPU_PROVIDER, OLDEST_LIFTED, ONNX, OURS, Profile

# How ONNX Runtime says that it has no such operator, or no kernel for these types; the node's name is ours.
_NONE_SUCH = (
    re.compile(r"(?P<op>[\w.]+:\w+)\(-?\d+\) is not a registered function"),
    re.compile(r'In Node, \("(?P<node>[^"]*)".*(?:No Op registered|is deprecated)'),
    re.compile(r"Could not find an implementation for .* node with name '(?P<node>[^']*)'"),
)


def lacking(profile: Profile, probe: onnx.ModelProto) -> list[str]:
    """The operators of a probe that a target's runtime does not have; none where that runtime is not here.

    Args:
        profile: of the target.
        probe: nodes that are named by their operators, as `domain::Operator`.
    """
    if why_absent(profile) is not None:
        return []
    if profile.runtime == "openvino":
        return without_rule(probe)
    found: list[str] = []
    while (name := _refused(probe, profile.provider or CPU_PROVIDER)) is not None:
        rest = [node for node in probe.graph.node if node.name != name]
        if len(rest) == len(probe.graph.node):
            break
        found.append(name)
        probe = _with(probe, rest)
    return found


def newest_opset(profile: Profile) -> int | None:
    """The newest opset of ONNX that a target's runtime takes; None where it takes any, or is not here."""
    if profile.runtime == "openvino" or why_absent(profile) is not None:
        return None
    return _newest()


def runtime_of(profile: Profile) -> str:
    """The runtime of a target, with its version where it is ONNX Runtime."""
    return f"ONNX Runtime {ort.__version__}" if profile.runtime == "onnxruntime" else profile.device


def holds(profile: Profile) -> Holds:
    """What a target's runtime has, counted by domain where it can be asked for all: OpenVINO only tells of a graph."""
    domains = sorted(profile.domains - {OURS})
    if why_absent(profile) is not None or profile.runtime == "openvino":
        return Holds((OLDEST_LIFTED, None), dict.fromkeys(domains))
    names = _kernels(profile.provider or CPU_PROVIDER)
    counts = {domain: sum(d == domain for d, _ in names) for domain in domains}
    return Holds((OLDEST_LIFTED, newest_opset(profile)), counts)


def _kernels(provider: str) -> frozenset[tuple[str, str]]:
    """Operators with a kernel, by domain and name."""
    known = {entry.provider for entry in binding.get_all_opkernel_def()}
    taken = {provider, CPU_PROVIDER} & known
    return frozenset((k.domain, k.op_name) for k in binding.get_all_opkernel_def() if k.provider in taken)


def _bare(domain: str, name: str, number: int) -> onnx.NodeProto:
    return onnx.helper.make_node(name, ["x"], [f"y{number}"], name=_label(domain, name), domain=domain)


def _label(domain: str, name: str) -> str:
    return f"{domain}::{name}" if domain else name


@cache
def _newest() -> int:
    """By opening a graph of one node: schemas are there of opsets that are not released, which sessions refuse."""
    versions: list[int] = sorted(
        {s.since_version for s in binding.get_all_operator_schema() if s.domain == ONNX}, reverse=True
    )
    return next(version for version in versions if _opens(_model([_bare(ONNX, "Identity", 0)], version)))


def _opens(model: onnx.ModelProto) -> bool:
    try:
        _session(model, CPU_PROVIDER)
    except Exception:  # the binding raises a class of its own for every status code
        return False
    return True


def _refused(probe: onnx.ModelProto, provider: str) -> str | None:
    """The first operator that ONNX Runtime does not have, by the name of its node; None where it says of none."""
    try:
        _session(probe, provider)
    except Exception as cause:  # the binding raises a class of its own for every status code
        for pattern in _NONE_SUCH:
            if told := pattern.search(str(cause)):
                return told["node"] if "node" in pattern.groupindex else told["op"].replace(":", "::")
    return None


def _session(model: onnx.ModelProto, provider: str) -> ort.InferenceSession:
    options = session_options(threads=1)
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=list(dict.fromkeys([provider, CPU_PROVIDER]))
    )


def _model(nodes: Iterable[onnx.NodeProto], opset: int) -> onnx.ModelProto:
    nodes = list(nodes)
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for node in nodes for name in node.output]
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])]
    domains = {ONNX: opset} | {node.domain: 1 for node in nodes if node.domain}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
    graph = onnx.helper.make_graph(nodes, "probe", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def _with(probe: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A probe with these nodes only, and what they read and give."""
    read, given = {n for node in nodes for n in node.input}, {n for node in nodes for n in node.output}
    graph = probe.graph
    kept = onnx.helper.make_graph(
        nodes,
        graph.name,
        [value for value in graph.input if value.name in read],
        [value for value in graph.output if value.name in given],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    return onnx.helper.make_model(kept, opset_imports=list(probe.opset_import), ir_version=probe.ir_version)
