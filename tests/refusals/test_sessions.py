"""Refusals of what runs a model and of what ran, each made and put right as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("onnxruntime")

from spq_graph.documents.plan import Plan, Reason
from spq_graph.runtime.proof import health
from spq_graph.runtime.proof.held import check_executed
from spq_graph.runtime.sessions import library, openvino
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.sessions.inputs import empty_past
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import LONGEST, random_ids, write_decoder
from tests.support.following import Told
from tests.support.plans import plan, site

follows = pytest.mark.follows


# ------------------------------------------------------------------------------------------------- caches


def past(shape: list[int | str | None]) -> tuple[int, ...]:
    return empty_past("past", shape, 2, np.float32, None).shape


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        pytest.param([], ["batch", 4, "past", 8], marks=follows("runtime/sessions/inputs.py:empty_past", "no shape")),
        pytest.param(
            ["batch", "heads", "past", 8],
            ["batch", 4, "past", 8],
            marks=follows("runtime/sessions/inputs.py:empty_past", "how many heads"),
        ),
        pytest.param(
            ["batch", 4, 16, 8], ["batch", 4, "past", 8], marks=follows("runtime/sessions/inputs.py:empty_past", "room")
        ),
    ],
    ids=["no shape", "free heads", "fixed length"],
)
def test_caches(refusal: Told, tmp_path: Path, wrong: list[int | str | None], right: list[int | str | None]) -> None:
    """Batch and length are free and the others numbers; or there is no cache."""
    with refusal:
        past(wrong)
    assert past(right) == (2, 4, 0, 8)
    ids = random_ids(1, 8)
    for cache in (True, False):
        model = write_decoder(tmp_path / "model.onnx", layers=1, cache=cache)
        assert Runner(model).logits(ids, np.ones_like(ids)).shape[:2] == (1, 8)


@follows("runtime/sessions/session.py:Decoder.failures")
def test_a_batch_that_fails(refusal: Told, tmp_path: Path) -> None:
    """The mask that this graph stores is of 64 tokens."""
    runner = Runner(write_decoder(tmp_path / "model.onnx", layers=1))
    for length, taken in ((LONGEST + 1, False), (LONGEST, True)):
        ids = random_ids(1, length)
        if taken:
            assert runner.logits(ids, np.ones_like(ids)).shape[1] == length
        else:
            with refusal:
                runner.logits(ids, np.ones_like(ids))
    free = Runner(write_decoder(tmp_path / "free.onnx", layers=1))
    assert free.fixed_shape == (None, None)


# ------------------------------------------------------------------------------------------------- runtimes


@follows("runtime/sessions/library.py:library_path")
def test_no_library_there(refusal: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.OVERRIDE, "absent.so")
    with refusal:
        library.library_path()
    monkeypatch.delenv(library.OVERRIDE)
    found = library.library_path()
    assert found is None or found.is_file()


def ending_in(model: Path, path: Path, op_type: str, domain: str, opset: int | None = None) -> Path:
    """A decoder whose logits go through one more operator."""
    proto = onnx.load(model)
    proto.graph.node[-1].output[0] = "before"
    proto.graph.node.append(helper.make_node(op_type, ["before"], ["logits"], name="last", domain=domain))
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    if opset is not None:
        proto.opset_import[0].version = opset
    onnx.save(proto, path)
    return path


@follows("runtime/sessions/library.py:cannot_load", "has no operator")
def test_operators_that_do_not_run_here(refusal: Told, made: Made, tmp_path: Path) -> None:
    odd = ending_in(made.model, tmp_path / "odd.onnx", "Odd", "elsewhere")
    refusal.command("eval", odd, "--text", made.text)
    assert done("inspect", odd, "--json").json["graph"]["operators"]["Odd"] == 1
    even = ending_in(made.model, tmp_path / "even.onnx", "Identity", "")
    done("eval", even, "--text", made.text)
    options = ["--calibration", made.data, "--spike-ratio", 50, "--no-eval"]
    done("quantize", even, "-o", tmp_path / "out", *options)


@follows("runtime/sessions/library.py:cannot_load", "cannot load this model")
def test_an_opset_of_the_future(refusal: Told, made: Made, tmp_path: Path) -> None:
    """A newer ONNX Runtime has a newer opset; this one has that of the model as it was."""
    with refusal:
        Runner(ending_in(made.model, tmp_path / "model.onnx", "Identity", "", opset=99))
    assert Runner(ending_in(made.model, tmp_path / "model.onnx", "Identity", "")).outputs == ["logits"]


@follows("runtime/sessions/openvino.py:OpenVinoRunner._open", "OpenVINO is not installed")
def test_no_openvino(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs see to it before anything is opened; whoever opens a runner is told the same."""
    with monkeypatch.context() as without:
        without.setattr(openvino, "is_here", lambda: False)
        with refusal:
            openvino.OpenVinoRunner(made.model)
    assert refusal.error.remedy == "pip install 'spq-graph[openvino]'"
    pytest.importorskip("openvino")
    done("eval", made.model, "--text", made.text, "--target", "openvino")


@follows("runtime/sessions/openvino.py:OpenVinoRunner._open", "OpenVINO cannot load")
def test_operators_that_openvino_has_not(refusal: Told, made: Made, tmp_path: Path) -> None:
    """The verbs hold operators against the target before; this is a file that is opened all the same."""
    pytest.importorskip("openvino")
    model = ending_in(made.model, tmp_path / "model.onnx", "SampleOp", "com.microsoft")
    with refusal:
        openvino.OpenVinoRunner(model)
    assert Runner(model).outputs == ["logits"]  # what target cpu opens
    done("eval", made.model, "--text", made.text, *refusal.error.remedy.removeprefix("pass ").split())


@follows("runtime/proof/health.py:kernels_of", outside="it installs a package into the environment of the tests")
def test_a_probe_that_does_not_load(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "probe.onnx").write_bytes(b"no model")
    with refusal:
        health.kernels_of(PROFILES["cpu"], tmp_path / "probe.onnx", {})


@follows("runtime/proof/health.py:_on_openvino", outside="it installs a package into the environment of the tests")
def test_a_probe_that_openvino_does_not_load(refusal: Told, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "probe.onnx").write_bytes(b"no model")
    with refusal:
        health.kernels_of(PROFILES["openvino"], tmp_path / "probe.onnx", {})


# ------------------------------------------------------------------------------------------------- what ran


def planned(target: Target, precision: Precision) -> Plan:
    return plan(site("down", precision, Reason.DEFAULT), target=target)


def kept(given: Plan) -> Plan:
    """As with --keep and its key."""
    sites = [entry.model_copy(update={"precision": Precision.FP32, "reason": Reason.OVERRIDE}) for entry in given.sites]
    return given.model_copy(update={"sites": sites})


ELSEWHERE = Executed(kernels={"node_down": "MatMul"}, placed={"node_down": "CPUExecutionProvider"})


@pytest.mark.parametrize(
    ("executed", "given"),
    [
        pytest.param(
            ELSEWHERE,
            planned("cpu", Precision.INT8),
            marks=follows("runtime/proof/held.py:_refuse", "did not run as integer kernels"),
        ),
        pytest.param(
            ELSEWHERE,
            planned("cpu", Precision.W8A16),
            marks=follows("runtime/proof/held.py:_refuse", "with integer weights did not run so"),
        ),
        pytest.param(
            replace(ELSEWHERE, kernels={"node_down": "MatMulInteger"}),
            planned("cuda", Precision.INT8),
            marks=follows("runtime/proof/held.py:_refuse", "did not run on"),
        ),
    ],
    ids=["fused", "by block", "placed"],
)
def test_sites_that_did_not_run_as_planned(refusal: Told, executed: Executed, given: Plan) -> None:
    with refusal:
        check_executed(executed, given, "model.onnx")
    assert "--keep" in refusal.error.remedy
    assert given.sites[0].key in refusal.error.what
    check_executed(executed, kept(given), "model.onnx")
