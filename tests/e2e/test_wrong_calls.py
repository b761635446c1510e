"""A file whose calls of the operator are wrong: every verb that runs it refuses it, with the library and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import done, spq
from tests.support.decoders import write_decoder, write_ids


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    model = write_decoder(folder / "model.onnx", layers=1, spikes={0: 1000.0})
    data = write_ids(folder / "calibration.npz")
    asked = ("--high-precision", "fp8_e4m3", "--keep", "*.down_proj")
    done("quantize", model, "-o", folder / "out", "--calibration", data, "--no-eval", *asked)
    return folder


@pytest.mark.parametrize("library", [True, False])
def test_another_format(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: bool) -> None:
    if not library:
        monkeypatch.setenv("SPQ_GRAPH_LIBRARY", "")
    wrong = Path(shutil.copytree(out / "out", tmp_path / "out")) / "model.onnx"
    model = onnx.load(wrong)
    [call] = [node for node in model.graph.node if node.op_type == "Fp8MatMul"]
    next(a for a in call.attribute if a.name == "a_type").i = 18
    onnx.save(model, wrong)
    data = out / "calibration.npz"
    for verb in (("eval", wrong, "--text", data), ("eval", out / "model.onnx", "--text", data, "--against", wrong)):
        result = spq(*verb)
        said = " ".join(result.err.split())
        assert result.code == 1, said
        assert "spq::Fp8MatMul" in said
        assert "a_type must be 1, 17 (FLOAT8E4M3FN) or 19 (FLOAT8E5M2); it is 18" in said
        assert "spq-graph apply" in said
    result = spq("verify", tmp_path / "out", out / "model.onnx")
    assert result.code == 3, result.err
