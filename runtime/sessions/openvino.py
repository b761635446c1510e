"""OpenVINO as the second runtime: sessions with the face of ONNX Runtime's, and what its CPU plugin really ran."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import SourceError

DEVICE = "OpenVINO CPU"
# By element type of OpenVINO, the name that ONNX Runtime has for it.
_TYPES = {
    "i64": "tensor(int64)",
    "i32": "tensor(int32)",
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "boolean": "tensor(bool)",
    "i8": "tensor(int8)",
    "u8": "tensor(uint8)",
}
_PRODUCTS = frozenset({"FullyConnected", "MatMul"})
_INTEGERS = frozenset({"i8", "u8"})


def is_here() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output, described as ONNX Runtime does: free dimensions by a name."""

    name: str
    type: str
    shape: list[int | str]


class OpenVinoSession:
    """A compiled model with as much of ONNX Runtime's session as a Runner asks for.

    Floating point is float32: by default the plugin computes in bfloat16 where the processor has it, and a plan's
    numbers would then depend on the machine.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
        self.compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        self._request = self.compiled.create_infer_request()

    def get_inputs(self) -> list[Port]:
        """The model's inputs."""
        return [_port(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """The model's outputs."""
        return [_port(port) for port in self.compiled.outputs]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run once; the results are the caller's own."""
        self._request.infer({name: np.ascontiguousarray(feed) for name, feed in feeds.items()})
        return [self._request.get_tensor(name).data.copy() for name in outputs]


def _port(port: Any) -> Port:
    shape = [d.get_length() if d.is_static else f"axis_{n}" for n, d in enumerate(port.get_partial_shape())]
    kind = port.get_element_type().get_type_name()
    return Port(port.get_any_name(), _TYPES.get(kind, f"tensor({kind})"), shape)


class OpenVinoRunner(Runner):
    """One decoder in OpenVINO's CPU plugin, to be run and measured like any other.

    Raises:
        SourceError: OpenVINO is not installed, or cannot load the file.
    """

    runtime = "OpenVINO"

    def _open(self, path: Path, threads: int, profile: Path | None, provider: str) -> Any:
        if not is_here():
            raise SourceError("OpenVINO is not installed", where=str(path), remedy="pip install 'spq-graph[openvino]'")
        try:
            return OpenVinoSession(path, threads)
        except Exception as cause:  # the binding raises RuntimeError, with the reason on the last of many lines
            reason = next((line for line in reversed(str(cause).splitlines()) if line.strip()), "")
            raise SourceError(
                f"OpenVINO cannot load this model: {reason.strip()}", where=str(path), remedy="pass --target cpu"
            ) from cause


def execute_on_openvino(runner: Runner, ids: Ids) -> Executed:
    """Run one short batch, int64 [1, length], in a session of OpenVINO, and list the kernels that ran."""
    runner.run(*runner.filled(ids, np.ones_like(ids)))
    return executed_by_openvino(runner.session, runner.path)


def executed_by_openvino(session: OpenVinoSession, path: Path) -> Executed:
    """What a session ran that has run before: shapes are free until a batch is there, and so are kernels.

    Products are named by what they multiplied in: `FullyConnected_int8`; `FullyConnected_float_weights_int8` where the
    kernel decompresses integer weights; `FullyConnected_float`.
    """
    found = Executed()
    counted: Counter[str] = Counter()
    for node in session.compiled.get_runtime_model().get_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items() if hasattr(value, "value")}
        kind = info.get("layerType", "")
        if kind in ("", "Const", "Input", "Output"):
            continue
        kernel = _kernel(kind, info)
        counted[kernel] += 1
        # What was merged into a kernel is listed, but of a product sometimes its operands only: then it is its name.
        names = {node.get_friendly_name(), *info.get("originalLayersNames", "").split(",")}
        if kind in _PRODUCTS:
            names |= {_dequantized(name) for name in names}
        for name in names:
            if name not in found.kernels or kind in _PRODUCTS:
                found.kernels[name] = kernel
    # A node that gives the graph's result goes by the name of that result, behind what is left out as well.
    results = dict(found.kernels)
    for node in reversed(onnx.load(path, load_external_data=False).graph.node):
        for output in node.output:
            if output in results:
                found.kernels.setdefault(node.name, results[output])
                if node.op_type in ("Identity", "Cast") and results[output].startswith(tuple(_PRODUCTS)):
                    results.setdefault(node.input[0], results[output])
    found.placed = dict.fromkeys(found.kernels, DEVICE)
    found.ops = dict(sorted(counted.items()))
    found.providers = {DEVICE: counted.total()}
    return found


def without_rule(probe: onnx.ModelProto) -> list[str]:
    """The operators that OpenVINO's reader does not convert.

    Args:
        probe: nodes that are named by their operators, as `domain::Operator`. One of ONNX's own is only told where
            there is no rule for it: a rule may ask for constants that a probe does not have.
    """
    import openvino

    try:
        openvino.Core().read_model(probe.SerializeToString(), b"")
    except Exception as cause:  # the binding raises RuntimeError, and lists them behind these words
        listed = re.findall(r"(No conversion rule found for operations|Conversion is failed for): ([^\n]*)", str(cause))
        names = {(what, name.strip()) for what, names in listed for name in names.split(",")}
        told = {_told(name) for what, name in names if what.startswith("No") or "." in name}
        return [node for node in dict.fromkeys(n.name for n in probe.graph.node) if node in told]
    return []


def _told(name: str) -> str:
    """An operator as OpenVINO calls it (`com.microsoft.MatMulNBits`, `Magic-21`), as `domain::Operator`."""
    domain, _, operator = name.rpartition("-")[0].rpartition(".") if "-" in name else name.rpartition(".")
    return f"{domain}::{operator}" if domain else operator


def _dequantized(name: str) -> str:
    """Whose result a step of dequantizing belongs to: of a product without a zero point only that step may be named."""
    return name.partition("/Dequantization")[0]


def _kernel(kind: str, info: Mapping[str, str]) -> str:
    if kind not in _PRODUCTS:
        return kind
    # The primitive ends with what it multiplies, the precision is that of the weights as it reads them.
    computed = info.get("primitiveType", "").rpartition("_")[2].lower()
    if computed in _INTEGERS:
        return f"{kind}_int8"
    decompresses = info.get("runtimePrecision", "").lower() in _INTEGERS
    return f"{kind}_float_weights_int8" if decompresses else f"{kind}_float"
