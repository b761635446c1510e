"""Exporting a folder: the contract's inputs and outputs, the same numbers as torch, the same bytes twice."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

from spq_graph.errors import OutputError, SourceError  # noqa: E402
from spq_graph.models.export import INPUTS, export_folder  # noqa: E402
from spq_graph.models.loading import load_causal_lm, quiet  # noqa: E402

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_folder(tiny_llama, out)
    return out


def assert_matches_torch(folder: Path, onnx: Path) -> None:
    """Compares logits on a batch whose second row is padded on the left."""
    runtime = pytest.importorskip("onnxruntime")
    ids = np.random.default_rng(0).integers(3, 64, (2, 11))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    feeds = dict(zip(INPUTS, (ids, mask, np.maximum(mask.cumsum(1) - 1, 0)), strict=True))
    actual = runtime.InferenceSession(onnx, providers=["CPUExecutionProvider"]).run(["logits"], feeds)[0]
    with torch.no_grad():
        expected = load_causal_lm(folder)(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).logits
    seen = mask.astype(bool)
    expected = expected.numpy()[seen]
    assert np.abs(actual[seen] - expected).max() <= 1e-3 * np.abs(expected).max()


def test_matches_torch(tiny_llama: Path, exported: Path) -> None:
    assert_matches_torch(tiny_llama, exported)


def test_interface(exported: Path) -> None:
    model = ir.load(exported)
    assert {value.name: list(map(str, value.shape)) for value in model.graph.inputs} == {
        name: ["batch_size", "sequence_length"] for name in INPUTS
    }
    assert all(value.dtype == ir.DataType.INT64 for value in model.graph.inputs)
    (logits,) = model.graph.outputs
    assert (logits.name, list(map(str, logits.shape))) == ("logits", ["batch_size", "sequence_length", "64"])
    assert model.opset_imports[""] == 21
    assert not model.functions


def test_scopes_are_module_paths(exported: Path) -> None:
    model = ir.load(exported)
    scopes = {ast.literal_eval(node.metadata_props[SCOPES])[-2] for node in model.graph if node.op_type == "MatMul"}
    layer = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert {f"model.layers.{n}.{name}" for n in range(2) for name in layer} | {"lm_head"} <= scopes
    assert "model.embed_tokens.weight" in model.graph.initializers


def test_no_trace_of_this_machine(tiny_llama: Path, exported: Path) -> None:
    content = exported.read_bytes()
    for needle in (b"site-packages", b".py", str(tiny_llama).encode(), str(Path.home()).encode() + b"/"):
        assert needle not in content
    model = ir.load(exported)
    assert not model.graph.metadata_props
    assert {key for node in model.graph for key in node.metadata_props} == {SCOPES}


def test_same_bytes_twice_and_silent(
    tiny_llama: Path, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    export_folder(tiny_llama, tmp_path / "model.onnx", progress=steps.append)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (exported.parent / name).read_bytes()
    assert capfd.readouterr() == ("", "")
    assert "tracing the model" in steps


def test_gemma2(tmp_path: Path) -> None:
    """GeGLU, tied head, soft caps and sliding windows: all that LLaMA does not have."""
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, sliding_window=4, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path / "gemma2"
    with quiet():
        transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    export_folder(folder, tmp_path / "model.onnx")
    assert_matches_torch(folder, tmp_path / "model.onnx")


def edited(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_missing_weights_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(SourceError, match=r"lack 9 of the model's tensors: model\.layers\.2"):
        export_folder(folder, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_wrong_shapes_do_not_load(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be loaded"):
        load_causal_lm(edited(tiny_llama, tmp_path / "wider", intermediate_size=64))


def test_truncated_weights_do_not_load(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "short")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cannot be loaded"):
        load_causal_lm(folder)


def test_failing_exporter_is_a_source_error(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("\nno such operator\nat line 3")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(SourceError, match=r"the exporter failed: no such operator\n") as caught:
        export_folder(tiny_llama, tmp_path / "model.onnx")
    assert "LlamaForCausalLM" in caught.value.where


def test_unwritable_target(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    monkeypatch.setattr("spq_graph.models.export._trace", lambda _: None)
    monkeypatch.setattr("spq_graph.models.export._translate", lambda *_: model)
    with pytest.raises(OutputError, match="cannot be written"):
        export_folder(tiny_llama, tmp_path / "absent" / "model.onnx")
