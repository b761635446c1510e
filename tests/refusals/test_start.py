"""Refusals of what shows at the start: targets that are not here, and graphs that are no decoder of their own."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

from docs.refusals import ROOT
from spq_graph.runtime.proof import held
from spq_graph.runtime.proof.held import refuse_absent
from spq_graph.runtime.sessions import openvino
from spq_graph.terms.targets import PROFILES
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import write_decoder
from tests.support.following import Told
from tests.support.graphs import Builder

follows = pytest.mark.follows


@follows("runtime/proof/held.py:refuse_absent", "OpenVINO is not installed")
def test_without_openvino(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before and after the package is installed."""
    arguments = ["eval", made.model, "--text", made.text, "--target", "openvino"]
    with monkeypatch.context() as without:
        without.setattr(openvino, "is_here", lambda: False)
        refusal.command(*arguments)
        with refusal:
            refuse_absent(PROFILES["openvino"], "--target")
    assert refusal.error.remedy == "pip install 'spq-graph[openvino]'"
    pytest.importorskip("openvino")
    done(*arguments)


def timing(made: Made, target: str) -> list[object]:
    return ["bench", made.model, "--rounds", 1, "--length", 4, "--target", target]


@follows("runtime/proof/held.py:refuse_absent", "here has no")
def test_without_a_provider(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before and after the package is installed, on a machine with its device."""
    monkeypatch.setattr(held, "_starts", lambda _: True)
    monkeypatch.setattr(held.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    refusal.command(*timing(made, "cuda"))
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra in project["optional-dependencies"]
    monkeypatch.setattr(held.ort, "get_available_providers", lambda: [PROFILES["cuda"].provider])
    refuse_absent(PROFILES["cuda"], "--target")


@follows("runtime/proof/held.py:refuse_absent", "does not start here")
def test_without_a_device(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the device and then on one with it, and on the CPU."""
    monkeypatch.setattr(held.ort, "get_available_providers", lambda: [PROFILES["cuda"].provider])
    with monkeypatch.context() as without:
        without.setattr(held, "_starts", lambda _: False)
        refusal.command(*timing(made, "cuda"))
    done(*timing(made, refusal.error.remedy.split()[-1]))
    monkeypatch.setattr(held, "_starts", lambda _: True)
    refuse_absent(PROFILES["cuda"], "--target")


def inside_if(path: Path, *, cached: bool) -> Path:
    """A product in both branches of an If, which an input chooses."""
    b = Builder()
    weight = b.random(8, 8)
    branches = []
    for name in ("then", "else"):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [3, 8])
        constant = onnx.numpy_helper.from_array(weight, f"{name}_w")
        node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], name=f"{name}_product")
        branches.append(helper.make_graph([node], name, [], [out], [constant]))
    choice = "use_cache_branch" if cached else "choice"
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8]),
        helper.make_tensor_value_info(choice, TensorProto.BOOL, [1]),
    ]
    node = helper.make_node("If", [choice], ["y"], name="chosen", then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def calibrating(model: object, made: Made, tmp_path: Path) -> list[object]:
    return ["calibrate", model, "-o", tmp_path / "ranges", "--calibration", made.data]


def follow_export(words: str, made: Made, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `spq-graph export FOLDER -o DIR` writes is taken; that it exports is what tests of the exporter see to."""
    monkeypatch.setattr("spq_graph.models.export.export_folder", lambda _, out, **__: shutil.copy(made.model, out))
    verb, folder, option, out = words.partition("`spq-graph ")[2].partition("`")[0].split()
    assert (folder, out) == ("FOLDER", "DIR")
    done(verb, tiny_llama, option, tmp_path / "DIR")
    done(*calibrating(tmp_path / "DIR" / "model.onnx", made, tmp_path))


@follows("passes/find/nested.py:refuse_nested")
def test_products_inside_of_an_if(
    refusal: Told, made: Made, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal.command(*calibrating(inside_if(tmp_path / "model.onnx", cached=False), made, tmp_path))
    follow_export(refusal.error.remedy, made, tiny_llama, tmp_path, monkeypatch)


@follows("spq_graph/terms/halves.py:refuse_halves", "or let optimum export it")
def test_a_merged_decoder_alone(
    refusal: Told, made: Made, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is exported again, with or without merging."""
    refusal.command(*calibrating(inside_if(tmp_path / "decoder_model_merged.onnx", cached=True), made, tmp_path))
    follow_export(refusal.error.remedy, made, tiny_llama, tmp_path, monkeypatch)
    unmerged = refusal.error.remedy.rpartition("and pass ")[2]
    done(*calibrating(write_decoder(tmp_path / unmerged, layers=1), made, tmp_path))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            ["decoder_model", "decoder_with_past_model"],
            marks=follows("spq_graph/terms/halves.py:refuse_halves", "lies beside it, too"),
        ),
        pytest.param(
            ["decoder_with_past_model"],
            marks=follows("spq_graph/terms/halves.py:refuse_halves", "merged decoder", nth=1),
        ),
    ],
    ids=["both", "one"],
)
def test_a_merged_decoder_beside_its_parts(refusal: Told, made: Made, tmp_path: Path, parts: list[str]) -> None:
    for number, part in enumerate(parts):
        write_decoder(tmp_path / f"{part}.onnx", layers=1, cache=number > 0)
    refusal.command(*calibrating(inside_if(tmp_path / "decoder_model_merged.onnx", cached=True), made, tmp_path))
    first, _, more = refusal.error.remedy.removeprefix("pass ").partition("; ")
    done(*calibrating(first, made, tmp_path))
    assert [Path(first).name, *(name.strip(",") for name in more.split()[:1])] == [f"{part}.onnx" for part in parts]


@follows("spq_graph/terms/halves.py:refuse_halves", "encoder-decoder")
def test_half_of_an_encoder_decoder_model(refusal: Told, made: Made, tmp_path: Path) -> None:
    proto = onnx.load(made.model)
    proto.graph.input.append(helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, [1, 8, 32]))
    onnx.save(proto, tmp_path / "half.onnx")
    refusal.command(*calibrating(tmp_path / "half.onnx", made, tmp_path))
    done(*calibrating(made.model, made, tmp_path))


@follows("spq_graph/workbench/opening.py:Opening._look")
def test_nothing_to_quantize(refusal: Told, made: Made, tmp_path: Path) -> None:
    b = Builder()
    b.op("MatMul", "x", "z", outputs=["y"], name="product")
    shape = (1, [3, 3])
    onnx.save(b.model({"x": shape, "z": shape}, {"y": shape}), tmp_path / "model.onnx")
    refusal.command(*calibrating(tmp_path / "model.onnx", made, tmp_path), "--allow-no-glu")
    command = refusal.error.remedy.partition("`spq-graph ")[2].partition("`")[0].split()
    assert "product" in done(command[0], tmp_path / "model.onnx", *command[1:]).out
