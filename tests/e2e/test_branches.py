"""Outlier branches from the command line: applied, proved, measured beside their controls, and told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions.library import OVERRIDE
from spq_graph.terms.targets import PROFILES
from tests.support.both_ways import applied_and_verified, document, ladder_kls, quantized_both_ways
from tests.support.command import done, spq
from tests.support.decoders import write_decoder

SPIKES = {0: 300.0, 1: 100.0, 2: 30.0}
WITH, WITHOUT = ("--remedy", "peel"), ("--no-remedy", "peel")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that spikes at three sites, quantized everywhere with outlier branches and without."""
    folder = tmp_path_factory.mktemp("branches")
    model = write_decoder(folder / "model.onnx", spikes=SPIKES)
    return quantized_both_ways(folder, model, WITH, WITHOUT)


def test_they_win_back_what_spikes_cost_and_random_channels_do_not(world: Path) -> None:
    found, bare = ladder_kls(world / "with"), ladder_kls(world / "without")
    assert found["spike_aware"] < 0.05 * bare["spike_aware"]
    assert found["everywhere"] == pytest.approx(bare["everywhere"], rel=0.1)  # what its head became may differ
    assert bare["spike_aware"] == bare["everywhere"]
    assert found["control_channels"] > 0.5 * found["everywhere"]


def test_the_plan_says_what_was_applied(world: Path) -> None:
    plan = document(world / "with", "plan.json")
    treatments = plan["treatments"]
    assert isinstance(treatments, list)
    assert all(t["applied"] and t["reason"] == "override" for t in treatments)
    narrower = {key: t["narrower"] for t in treatments for key in t["sites"]}
    assert narrower["layers.0.mlp.down_proj"] > 40
    assert narrower["layers.1.mlp.down_proj"] > 8
    assert min(narrower.values()) >= 1.25
    assert document(world / "without", "plan.json")["treatments"] == []


def test_out_has_the_sites_of_the_source_and_is_verified(world: Path) -> None:
    source, out = (done("inspect", world / name, "--json").json for name in ("model.onnx", "with"))
    for told in ("key", "role", "layer", "shape"):
        assert [s[told] for s in out["sites"]] == [s[told] for s in source["sites"]], told
    assert out["glu_blocks"] == source["glu_blocks"] == 3
    done("verify", world / "with", world / "model.onnx")
    graph = onnx.load(world / "with" / "model.onnx", load_external_data=False).graph
    noted = [p.value for node in graph.node for p in node.metadata_props if p.key == "spq_graph.peeled"]
    assert noted
    assert all(text.split() == sorted(text.split(), key=int) for text in noted)


def test_rows_that_were_exchanged_are_refused(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("apply", world / "model.onnx", world / "with" / "plan.json", "-o", out)
    model = onnx.load(out / "model.onnx")
    rows_of = next(t for t in model.graph.initializer if t.name.endswith(".branch.rows"))
    array = onnx.numpy_helper.to_array(rows_of)
    rows_of.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[::-1]), rows_of.name))
    (out / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(model, out / "model.onnx")
    told = spq("verify", out, world / "model.onnx")
    assert told.code == 3
    assert "rows of its outlier branch are not those of the source's weight" in told.err


@pytest.mark.parametrize("preset", [(), ("--preset", "w8a8-token")])
def test_without_the_library_integer_kernels_are_proved(
    world: Path, tmp_path: Path, preset: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By token and static: the functions that the file carries have names of their own where there is a branch."""
    monkeypatch.setenv(OVERRIDE, "")
    out, data = tmp_path / "out", ("--calibration", world / "ids.npz", "--window", 32)
    done("quantize", world / "model.onnx", "-o", out, *data, *WITH, *preset, "--no-eval", "--spike-ratio", 1e6)
    report = document(out, "report.json")
    ran = report["by_token" if preset else "with_branch"]
    assert isinstance(ran, dict)
    assert (ran["sites"] > 10, ran["kernels"], ran["library"]) == (True, 0, None)
    kernels = report["kernels"]
    assert isinstance(kernels, dict)
    assert kernels["layers.0.mlp.down_proj"] == "MatMulInteger"


@pytest.mark.parametrize("target", PROFILES)
def test_the_same_plan_on_every_target(world: Path, tmp_path: Path, target: str) -> None:
    applied_and_verified(world, tmp_path / "out", target)


def test_a_difference_is_told_in_words(world: Path) -> None:
    said = " ".join(done("diff", world / "without", world / "with").out.split())
    assert "outlier branch" in said
    assert "none -> " in said
    assert done("diff", world / "without", world / "with", "--json").json["branches"]


def test_what_no_remedy_is_called(world: Path, tmp_path: Path) -> None:
    told = spq("quantize", world / "model.onnx", "-o", tmp_path / "out", "--remedy", "rotation")
    assert (told.code, "no remedy 'rotation'" in told.err, "one of peel" in told.err) == (2, True, True)
    both = spq("quantize", world / "model.onnx", "-o", tmp_path / "out", *WITH, *WITHOUT)
    assert (both.code, "asked for and left out" in both.err) == (2, True)
