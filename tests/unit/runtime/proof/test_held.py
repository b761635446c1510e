"""What ran on another provider or as another kernel is named; a provider without its device is absent."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

import onnxruntime as ort

from spq_graph.documents.plan import Plan, Reason
from spq_graph.runtime.proof.held import account, check_executed, unaccounted, why_absent
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.support.plans import plan, site

CUDA = "CUDAExecutionProvider"


def planned(target: Target, precision: Precision = Precision.INT8) -> Plan:
    return plan(site("down", precision, Reason.DEFAULT), target=target)


def ran(kernel: str, provider: str) -> Executed:
    return Executed(kernels={"node_down": kernel}, placed={"node_down": provider})


def test_what_ran_as_planned_passes() -> None:
    check_executed(ran("MatMulIntegerToFloat", "CPUExecutionProvider"), planned("cpu"), "")
    check_executed(ran("MatMulInteger", CUDA), planned("cuda"), "")
    check_executed(ran("FullyConnected_int8", "OpenVINO CPU"), planned("openvino"), "")
    for by_block in (Precision.W8A8_BLOCK, Precision.W8A16):
        check_executed(ran("MatMulNBits", "CPUExecutionProvider"), planned("cpu", by_block), "")
    check_executed(ran("FullyConnected_float_weights_int8", "OpenVINO CPU"), planned("openvino", Precision.W8A16), "")
    check_executed(Executed(), planned("tensorrt"), "")  # the whole graph is one engine there
    check_executed(Executed(absent="no GPU"), planned("cuda"), "")


@pytest.mark.parametrize(
    ("target", "executed", "precision", "message"),
    [
        ("cpu", ran("MatMul", "CPUExecutionProvider"), Precision.INT8, r"down \(node node_down\): MatMul"),
        ("cpu", ran("MatMul", "CPUExecutionProvider"), Precision.W8A16, "integer weights did not run so: down"),
        ("cpu", ran("MatMul", "CPUExecutionProvider"), Precision.W8A8_BLOCK, "integer weights did not run so: down"),
        ("cuda", ran("MatMulInteger", "CPUExecutionProvider"), Precision.INT8, f"did not run on {CUDA}: down"),
        ("cuda", ran("MatMul", CUDA), Precision.INT8, "1 sites planned as integers"),
        ("tensorrt", ran("MatMul", CUDA), Precision.INT8, "did not run on TensorrtExecutionProvider: down"),
        ("openvino", ran("FullyConnected_float", "OpenVINO CPU"), Precision.INT8, "FullyConnected_float"),
        ("openvino", Executed(), Precision.INT8, "not found"),
    ],
)
def test_what_did_not_is_named(target: Target, executed: Executed, precision: Precision, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check_executed(executed, planned(target, precision), "model.onnx")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_finds_no_device_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("CUDA is here")
    assert "has no CUDAExecutionProvider" in (why_absent(PROFILES["cuda"]) or "")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    assert "does not start here" in (why_absent(PROFILES["cuda"]) or "")
    assert why_absent(PROFILES["cpu"]) is why_absent(PROFILES["portable"]) is None


def test_what_need_not_run_is_accounted_for() -> None:
    """A constant and the twin of what ran as planned; the twin of what did not is refused as that is."""
    plan = planned("openvino")
    [node] = [site.node for site in plan.sites]
    nothing = Executed()
    assert unaccounted(nothing, plan) == [node]
    account(nothing, [node], {})
    check_executed(nothing, plan, "")
    assert nothing.folded == {node: "constant"}
    for kernel, good in (("FullyConnected_int8", True), ("FullyConnected_float", False)):
        executed = Executed(kernels={"other": kernel}, placed={"other": "OpenVINO CPU"})
        account(executed, [], {node: ["absent", "other"]})
        assert executed.folded == {node: "the same as other"}
        if good:
            check_executed(executed, plan, "")
        else:
            with pytest.raises(CheckError, match="did not run as integer kernels"):
                check_executed(executed, plan, "")
    assert unaccounted(Executed(absent="no GPU"), plan) == []
