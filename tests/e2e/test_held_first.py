"""Opset and operators are held against the target before anything is calibrated, by every verb, dry runs too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.canon.lift_old import CHANGES
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.sessions.opening import open_session, session_options
from spq_graph.terms.errors import SourceError
from spq_graph.terms.targets import PROFILES
from tests.support.command import Case, done, spq
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder, write_ids
from tests.unit.passes.find.test_quantized import int4

OPENVINO = pytest.mark.skipif(why_absent(PROFILES["openvino"]) is not None, reason="OpenVINO is not installed")


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spq_graph.workbench.workbench.collect_ranges", lambda *_: pytest.fail("it was calibrated"))


def _verbs(model: Path, folder: Path, case: Case, target: str) -> list[list[object]]:
    """Every verb that plans, for a target."""
    ids = write_ids(folder / "ids.npz")
    quantize = ["quantize", model, "-o", folder / "out", "--calibration", ids, "--window", 32, "--target", target]
    plan = ["plan", model, case.out / "ranges.json", "-o", folder / "p.json", "--target", target]
    apply = ["apply", model, case.out / "plan.json", "-o", folder / "out", "--target", target]
    return [quantize, [*quantize, "--dry-run"], plan, apply]


def _refused(verbs: list[list[object]], message: str, remedy: str) -> None:
    for verb in verbs:
        refused = spq(*verb)
        told = " ".join(refused.err.split())
        assert refused.code == 1, verb
        assert message in told, (verb, told)
        assert remedy in told, (verb, told)
        assert "partial" not in told, told


def _with_operator(path: Path, domain: str, op_type: str) -> Path:
    """What the head reads, sent through another operator."""
    model = onnx.load(write_decoder(path, layers=1))
    head = model.graph.node[-1]
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node(op_type, [head.input[0]], ["odd"], name="odd", domain=domain)
    )
    head.input[0] = "odd"
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    return path


def _with_opset(path: Path, opset: int) -> Path:
    model = onnx.load(write_decoder(path, layers=1))
    model.opset_import[0].version = opset
    onnx.save(model, path)
    return path


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize("target", PROFILES)
def test_an_opset_that_cannot_be_lifted(target: str, case: Case, tmp_path: Path) -> None:
    model = _with_opset(tmp_path / "model.onnx", 6)
    message, remedy = "opset 6", "export the model again with opset 13 or later"
    _refused(_verbs(model, tmp_path, case, target), message, remedy)
    _refused([["calibrate", model, "-o", tmp_path / "r.json", "--calibration", tmp_path / "ids.npz"]], message, remedy)


@pytest.mark.usefixtures("nothing_slow")
def test_an_opset_that_the_runtime_does_not_have_yet(case: Case, tmp_path: Path) -> None:
    model = _with_opset(tmp_path / "model.onnx", 99)
    newest = done("doctor", "--json").json["holds"]["cpu"]["opsets"][1]
    _refused(_verbs(model, tmp_path, case, "cpu"), f"takes {newest} at most", f"opset {newest} or earlier")


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize(("domain", "op_type"), [("acme", "Magic"), ("com.microsoft", "NoSuch"), ("", "NoSuch")])
def test_an_operator_that_nothing_here_has(domain: str, op_type: str, case: Case, tmp_path: Path) -> None:
    model = _with_operator(tmp_path / "model.onnx", domain, op_type)
    for target in ("cpu", "openvino"):
        _refused(
            _verbs(model, tmp_path, case, target), f"has no operator {domain}{':' * bool(domain)}{op_type}", "inspect"
        )
    done("inspect", model)


@OPENVINO
@pytest.mark.usefixtures("nothing_slow")
def test_an_operator_that_the_target_alone_does_not_have(case: Case, tmp_path: Path) -> None:
    model = _with_operator(tmp_path / "model.onnx", "com.microsoft", "ScaledSiLU")
    message = "target 'openvino' has no operators of this graph: 1 com.microsoft::ScaledSiLU"
    _refused(_verbs(model, tmp_path, case, "openvino"), message, "use target cpu")
    measure = ["eval", model, "--text", tmp_path / "ids.npz", "--window", 32, "--target", "openvino"]
    _refused([measure], message, "use target cpu")


@OPENVINO
def test_the_remedy_serves(tmp_path: Path) -> None:
    model = _with_operator(tmp_path / "model.onnx", "com.microsoft", "ScaledSiLU")
    ids = write_ids(tmp_path / "ids.npz")
    done(
        "quantize", model, "-o", tmp_path / "out", "--calibration", ids, "--window", 32, "--no-eval", "--target", "cpu"
    )


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_a_domain_that_the_target_does_not_have(target: str, case: Case, tmp_path: Path) -> None:
    model = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1))
    int4(model, "lm_head")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "model.onnx")
    message = f"target '{target}' has no operators of this graph: 1 com.microsoft::MatMulNBits"
    _refused(_verbs(tmp_path / "model.onnx", tmp_path, case, target), message, "use target cpu")


def _old(path: Path, opset: int) -> Path:
    model = decoder(Decoder(heads=2, kv_heads=2), opset=12)
    for node in model.graph.node:
        node.op_type = {"LessOrEqual": "Less"}.get(node.op_type, node.op_type) if opset < 12 else node.op_type
    model.opset_import[0].version = opset
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("target", [pytest.param("openvino", marks=OPENVINO), "cpu", "portable"])
def test_an_old_graph_goes_all_the_way(opset: int, target: str, tmp_path: Path) -> None:
    model, ids = _old(tmp_path / "model.onnx", opset), tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(0, 16, (32, 16)))
    out = tmp_path / "out"
    given = ["--calibration", ids, "--window", 16, "--no-eval", "--target", target]
    done("quantize", model, "-o", out, *given, "--dry-run")
    done("quantize", model, "-o", out, *given)
    assert {o.domain: o.version for o in onnx.load(out / "model.onnx").opset_import}[""] >= 13
    done("verify", out, model)
    assert done("inspect", model, "--json").json["graph"]["opset"] == opset
    feeds = {name: np.arange(8)[None] % 16 for name in ("input_ids", "position_ids")}
    feeds["attention_mask"] = np.ones((1, 8), np.int64)
    one, other = (open_session(str(file), session_options(1), file) for file in (model, out / "model.onnx"))
    [before], [after] = (session.run(["logits"], feeds) for session in (one, other))
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()


@pytest.mark.parametrize(
    ("op_type", "change", "message"),
    [
        ("Softmax", lambda main, node: node.attributes.update(axis=ir.AttrInt64("axis", 2)), "gives other logits"),
        ("Unsqueeze", lambda main, node: None, "does not run"),
    ],
)
def test_what_a_lift_changes_is_refused(
    op_type: str, change: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and what was made of it are both run: here the lift gets an operator wrong."""
    model, ids = _old(tmp_path / "model.onnx", 12), tmp_path / "ids.npz"
    np.savez(ids, input_ids=np.random.default_rng(0).integers(0, 16, (32, 16)))
    monkeypatch.setitem(CHANGES, op_type, (13, change))
    refused = spq("calibrate", model, "-o", tmp_path / "r.json", "--calibration", ids, "--window", 16)
    assert refused.code == 1
    assert message in " ".join(refused.err.split())
    assert "export the model again with opset 13" in refused.err


def test_only_what_was_lifted_is_run_twice(tmp_path: Path) -> None:
    assert prepared(_old(tmp_path / "old.onnx", 12)).lifted_from == 12
    assert prepared(write_decoder(tmp_path / "new.onnx", layers=1)).lifted_from is None


def test_doctor_says_what_targets_hold() -> None:
    found = done("doctor", "--json").json["holds"]
    assert found.keys() == PROFILES.keys()
    assert found["cpu"]["opsets"][0] == 7
    assert found["cpu"]["operators"][""] > 100
    assert found["cpu"]["operators"]["com.microsoft"] > 20
    shown = " ".join(done("doctor").out.split())
    assert (
        f"takes graphs of opset 7 to {found['cpu']['opsets'][1]}, operators: {found['cpu']['operators']['']}" in shown
    )


def test_what_a_target_cannot_load_is_called_by_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader may take every operator, and the device not: no temporary file is named, and there is a way out."""

    def refuse(profile: object, path: Path, *_: object) -> None:
        what = "OpenVINO cannot load this model: no such primitive"
        raise SourceError(what, where=str(path), remedy="pass --target cpu")

    monkeypatch.setattr("spq_graph.workbench.proving.execute_on", refuse)
    model, ids = write_decoder(tmp_path / "model.onnx", layers=1), write_ids(tmp_path / "ids.npz")
    given = ["--calibration", ids, "--window", 32, "--no-eval", "--target", "openvino"]
    refused = spq("quantize", model, "-o", tmp_path / "out", *given)
    assert refused.code == 1
    assert "no such primitive" in refused.err
    assert "partial" not in refused.err
    assert "pass --target cpu" in refused.err
    assert not (tmp_path / "out").exists()
