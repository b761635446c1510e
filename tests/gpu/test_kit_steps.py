"""The steps of the GPU run: without a device, with the CPU standing in for one, and as they fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from benchmarks.gpu import checked, drive, place, timed
from benchmarks.gpu.parts import pack
from benchmarks.gpu.place import GPU, STAND_IN
from benchmarks.gpu.small import add_planted
from benchmarks.shaped import SHAPES, write
from spq_graph.runtime.sessions.session import Runner

ROOT = Path(__file__).resolve().parents[2]
needs_none = pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia[0-9]*"))), reason="there is a GPU here")


def ran(kit: Path, results: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """What `run.sh` ends with, and the lines that it wrote."""
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), str(kit), str(results), *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    lines = (results / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return done.returncode, [json.loads(line) for line in lines]


@pytest.fixture
def empty_kit(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "some").write_text("thing", encoding="utf-8")
    pack(tmp_path / "in", tmp_path / "kit", preset=0)
    return tmp_path / "kit"


@needs_none
@pytest.mark.slow
def test_without_a_device_every_step_says_so(empty_kit: Path, tmp_path: Path) -> None:
    status, found = ran(empty_kit, tmp_path / "results")
    assert status == 0
    assert [(one["step"], one["result"]) for one in found] == [(name, "no device") for name in drive.STEPS]
    assert all("libcuda" in one["why"] or "device" in one["why"] for one in found)


@needs_none
@pytest.mark.slow
def test_every_step_runs_where_the_cpu_stands_in(tmp_path: Path) -> None:
    """The very steps of a GPU run, on the CPU, over small models that are made as the kit's are."""
    (tmp_path / "in" / "models").mkdir(parents=True)
    add_planted(tmp_path / "in" / "models")
    pack(tmp_path / "in", tmp_path / "kit", preset=0)
    status, lines = ran(tmp_path / "kit", tmp_path / "results", "--stand-in")
    found = {one["step"]: one for one in lines}
    assert status == 0, [one.get("printed") for one in lines]
    assert {one["result"] for one in lines} == {"done", "left out"}
    assert [name for name, one in found.items() if one["result"] == "left out"] == ["sanitizer"]
    assert all(one["stands_in"] for one in lines)
    assert {one["rows"] for one in found["product"]["records"]} == {1, 16, 17, 128}
    assert "passed" in found["tests"]["said"]
    models = {one["model"]: one for one in found["models"]["records"]}
    assert {name for name, one in models.items() if one["result"] == "done"} == {*models} - {"bf16"}
    assert models["planted"]["sites"]["MatMulInteger"] == models["int8"]["sites"]["MatMulInteger"] == 21
    assert models["fp8_e4m3"]["sites"]["Fp8MatMul"] == 1
    kernels = {one["kernel"] for one in found["operator"]["records"]}
    assert {"cuBLASLt fp16", "fp16 MatMul", "int8 MatMulInteger", "spq fp8_e4m3"} <= kernels
    cases = {(one["case"], one["file"]) for one in found["whole"]["records"] if "case" in one}
    assert {case for case, _ in cases} == {"prefill 128", "decode"}
    assert {file for _, file in cases} == {"fp16", "int8", "int8, down projections in fp8_e4m3", "fp8_e4m3", "w8a16"}


def test_a_step_that_fails_tells_the_end_of_what_it_printed(tmp_path: Path) -> None:
    found = drive.run("models", tmp_path / "absent", 60, tmp_path / "log.txt", stand_in=True)
    assert (found["result"], found["status"]) == ("failed", 1)
    assert "none was there" in found["printed"]
    assert "none was there" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_step_that_takes_too_long_is_ended_and_keeps_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (
        "print('@@ {\"found\": 1}', flush=True); print('@@ {\"half', end='', flush=True); import time; time.sleep(60)"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(drive.subprocess, "Popen", lambda command, **more: popen([sys.executable, "-c", slow], **more))
    found = drive.run("product", tmp_path, 2, tmp_path / "log.txt")
    assert (found["result"], found["records"]) == ("timed out", [{"found": 1}])
    assert found["seconds"] < 30


def test_the_limits_of_the_steps_fit_a_lease() -> None:
    """A call is ten minutes at most, and two of them and the starts of two machines a quarter of an hour."""
    assert sum(drive.STEPS.values()) < 600
    assert drive.SECONDS + 240 + 2 * 120 <= 900


def test_a_model_that_computes_other_numbers_fails_alone(tmp_path: Path) -> None:
    add_planted(tmp_path / "models")
    folder = tmp_path / "models"
    kept = dict(np.load(folder / "int8" / "expected.npz"))
    np.savez(folder / "int8" / "expected.npz", ids=kept["ids"], logits=-kept["logits"])
    (folder / "w8a16" / "model.onnx").write_bytes(b"no model")
    shutil.copy(folder / "int8" / "plan.json", folder / "fp8_e4m3" / "plan.json")
    records: list[dict[str, Any]] = []
    with pytest.raises(SystemExit, match="of 8 models failed: fp8_e4m3, int8, w8a16"):
        checked.models(folder, STAND_IN, records.append)
    by_name = {one["model"]: one for one in records}
    assert by_name["int8"]["relative_l2"] == pytest.approx(2, rel=0.05)
    assert "why" in by_name["w8a16"]
    assert "1 sites planned as integers did not run as integer kernels" in by_name["fp8_e4m3"]["not_as_planned"]
    assert by_name["fp8_e4m3"]["relative_l2"] < 0.05
    assert by_name["planted"]["result"] == "done"


def event(name: str, operator: str, provider: str, *kinds: str) -> dict[str, Any]:
    told = {"op_name": operator, "provider": provider, "output_type_shape": [{kind: [1, 8]} for kind in kinds]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": told}


def test_what_computes_numbers_elsewhere_is_named_and_what_works_out_sizes_is_not(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    events = [
        event("size", "Shape", STAND_IN.provider, "int64"),
        event("mask", "And", STAND_IN.provider, "bool"),
        event("down", "MatMulInteger", STAND_IN.provider, "int32"),
        event("norm", "Mul", STAND_IN.provider, "float16"),
        event("up", "MatMulInteger", GPU.provider, "int32"),
        {
            "cat": "Node",
            "name": "root",
            "args": {"op_name": "Cast", "provider": "CPU", "output_type_shape": [{"float": []}]},
        },
        {"cat": "Session", "name": "model_run", "args": {}},
    ]
    profile.write_text(json.dumps(events), encoding="utf-8")
    assert list(checked.left_to_others(profile, GPU.provider)) == [
        f"down (MatMulInteger on {STAND_IN.provider})",
        f"norm (Mul on {STAND_IN.provider})",
    ]


def test_a_model_of_a_shape_goes_on_from_its_cache_as_if_it_had_read_all_of_it(tmp_path: Path) -> None:
    shape = replace(SHAPES["smollm2-135m"], layers=2, vocabulary=300, stored="fp32")
    runner = Runner(write(shape, tmp_path / "model.onnx"))
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, (2, 9))
    whole = runner.logits(ids, np.ones_like(ids))
    names = [output.name for output in runner.session.get_outputs()]
    first = runner.token_feeds(ids[:, :8], np.ones((2, 8), np.int64)) | runner.empty_past(2, 8)
    given = dict(zip(names, runner.session.run(names, first), strict=True))
    past = {name.replace("present", "past_key_values"): given[name] for name in names if name != "logits"}
    last = runner.session.run(["logits"], runner.token_feeds(ids[:, 8:], np.ones((2, 9), np.int64)) | past)[0]
    np.testing.assert_allclose(last[:, 0], whole[:, 8], atol=1e-5)


def test_products_of_one_session_have_names_and_weights_of_their_own() -> None:
    weight = timed.fp8_cuda.random_weight((256, 512))
    for write_one, width in timed.fp8_cuda.KERNELS.values():
        one = write_one(weight)
        copies = [one.copy(number) for number in range(3)]
        names = [name for copy in copies for node in copy.nodes for name in node.output]
        assert len({*names}) == len(names)
        weights = [max(copy.initializers, key=lambda tensor: len(tensor.raw_data)).raw_data for copy in copies]
        assert len({*weights}) == 3
        assert {len(raw) for raw in weights} == {weight.size * width}


class TestMachine:
    def test_steps_find_the_libraries_that_torch_brings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cu13", "cudnn"):
            (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
        folders = place.environment()["LD_LIBRARY_PATH"].split(os.pathsep)
        assert folders[:2] == [str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
        assert folders[-1] == "/mine"

    def test_a_device_whose_driver_does_not_load_is_not_called_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(place, "DRIVER", "libno-such-driver.so")
        monkeypatch.setattr(Path, "glob", lambda path, pattern: iter([path / "nvidia0"]))
        with pytest.raises(RuntimeError, match="there is /dev/nvidia0, and the driver's library does not load"):
            place.no_device.__wrapped__()

    @needs_none
    def test_a_device_on_which_nothing_starts_says_what_may_be_why(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from benchmarks.gpu import steps

        monkeypatch.setattr(place, "no_device", lambda: None)
        monkeypatch.setattr(sys, "argv", ["steps", "product", "kit"])
        with pytest.raises(SystemExit, match=r"there is a device, and ONNX Runtime .* has no CUDAExecutionProvider"):
            steps.main()

    def test_what_a_library_lacks_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said = "\tlibcuda.so.1 => not found\n\tlibm.so.6 => /lib/libm.so.6 (0x1)\n"
        monkeypatch.setattr(place, "_said", lambda *command: said)
        assert place.unresolved(tmp_path / "library.so") == ["libcuda.so.1"]
