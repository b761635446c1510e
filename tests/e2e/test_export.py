"""Exporting a folder: the contract's inputs and outputs, the same numbers as torch, the same bytes twice."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

from spq_graph.models.chatter import quiet  # noqa: E402
from spq_graph.models.export import export_folder  # noqa: E402
from spq_graph.models.loading import load_causal_lm  # noqa: E402
from spq_graph.models.trace import INPUTS  # noqa: E402
from spq_graph.passes.canon.canonicalize import Canonicalize  # noqa: E402
from spq_graph.passes.files.read import load_graph  # noqa: E402
from spq_graph.passes.find.identify import identify  # noqa: E402
from spq_graph.terms.errors import OutputError, SourceError  # noqa: E402

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_folder(tiny_llama, out)
    return out


def session(onnx: Path) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(onnx, providers=["CPUExecutionProvider"])


def assert_matches_torch(folder: Path, onnx: Path, *, steps: tuple[int, ...] = (6, 4, 1)) -> None:
    """Compares logits on a batch whose second row is padded on the left, run piece by piece over the cache."""
    ids = np.random.default_rng(0).integers(3, 64, (2, sum(steps)))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    feeds = dict(zip(INPUTS, (ids, mask, np.maximum(mask.cumsum(1) - 1, 0)), strict=True))
    runtime = session(onnx)
    pasts = [i for i in runtime.get_inputs() if i.name.startswith("past")]
    cache = {i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) for i in pasts}
    pieces, done = [], 0
    for step in steps:
        new = slice(done, done + step)
        done += step
        run = {
            "input_ids": ids[:, new],
            "attention_mask": mask[:, :done],
            "position_ids": feeds["position_ids"][:, new],
        }
        logits, *present = runtime.run(None, run | cache)
        pieces.append(logits)
        cache = dict(zip(cache, present, strict=True))
    actual = np.concatenate(pieces, axis=1)
    with torch.no_grad():
        expected = load_causal_lm(folder)(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).logits
    seen = mask.astype(bool)
    expected = expected.numpy()[seen]
    assert np.abs(actual[seen] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_matches_torch(tiny_llama: Path, exported: Path) -> None:
    assert_matches_torch(tiny_llama, exported)


def test_without_cache(tiny_llama: Path, exported: Path, tmp_path: Path) -> None:
    export_folder(tiny_llama, tmp_path / "model.onnx", cache=False)
    assert_matches_torch(tiny_llama, tmp_path / "model.onnx", steps=(11,))
    model = ir.load(tmp_path / "model.onnx")
    assert [value.name for value in model.graph.inputs] == list(INPUTS)
    assert [value.name for value in model.graph.outputs] == ["logits"]
    plain, cached = (identify(canonical(path)) for path in (tmp_path / "model.onnx", exported))
    for what in ("key", "role", "layer", "shape"):
        assert [getattr(s, what) for s in plain.sites] == [getattr(s, what) for s in cached.sites]
    assert [block.down for block in plain.blocks] == [block.down for block in cached.blocks]
    assert plain.unmatched == cached.unmatched == []


def canonical(path: Path) -> Any:
    model = load_graph(path)
    Canonicalize()(model)
    return model


def test_interface(exported: Path) -> None:
    model = ir.load(exported)
    new, everything = "sequence_length", "past_sequence_length + sequence_length"
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert {value.name: list(map(str, value.shape)) for value in model.graph.inputs} == {
        "input_ids": ["batch_size", new],
        "attention_mask": ["batch_size", everything],
        "position_ids": ["batch_size", new],
        **{f"past_key_values.{part}": ["batch_size", "2", "past_sequence_length", "8"] for part in parts},
    }
    assert {value.name: list(map(str, value.shape)) for value in model.graph.outputs} == {
        "logits": ["batch_size", new, "64"],
        **{f"present.{part}": ["batch_size", "2", everything, "8"] for part in parts},
    }
    assert [value.dtype for value in model.graph.inputs] == [ir.DataType.INT64] * 3 + [ir.DataType.FLOAT] * 4
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT}
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
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        sliding_window=4,
        initializer_range=0.2,
    )
    folder = tmp_path / "gemma2"
    with quiet():
        transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    export_folder(folder, tmp_path / "model.onnx")
    assert_matches_torch(folder, tmp_path / "model.onnx")


def test_mixtral(tmp_path: Path) -> None:
    """Experts of their own, also where a step of one token leaves some of them without any."""
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        num_local_experts=3,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    folder = tmp_path / "mixtral"
    with quiet():
        transformers.MixtralForCausalLM(config).save_pretrained(folder)
    export_folder(folder, tmp_path / "model.onnx")
    assert_matches_torch(folder, tmp_path / "model.onnx", steps=(6, 4, 1, 1))
    model = ir.load(tmp_path / "model.onnx")
    # No sequences, which nothing but ONNX Runtime's CPU provider takes, and each matrix in the file once, as [K, N].
    assert not {node.op_type for node in model.graph} & {"SplitToSequence", "SequenceAt", "Loop"}
    shapes = [tuple(v.shape) for name, v in model.graph.initializers.items() if ".experts." in name]
    assert sorted(shapes) == [(32, 96)] * 3 + [(48, 32)] * 3
    keys = [site.key for site in identify(canonical(tmp_path / "model.onnx")).sites if site.expert == 2]
    assert keys == [f"model.layers.0.mlp.experts.2.{name}_proj" for name in ("gate_up", "down")]


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("family", "rope", "trained"), [("Llama", DYNAMIC, 16), ("Phi3", LONG, 64)], ids=["dynamic", "longrope"]
)
def test_positions_that_follow_the_length(
    family: str, rope: dict[str, Any], trained: int, cache: bool, tmp_path: Path
) -> None:
    """As torch, below the trained length of 16, at it, and beyond, where other frequencies hold."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=trained,
        original_max_position_embeddings=16,
        initializer_range=0.2,
        pad_token_id=0,
        rope_parameters=rope,
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    export_folder(tmp_path / "model", tmp_path / "model.onnx", cache=cache)
    for length in (8, 16, 17, 40):
        assert_matches_torch(tmp_path / "model", tmp_path / "model.onnx", steps=(length,))


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
    assert "--no-cache" not in caught.value.remedy  # it fails alike, which was tried


@pytest.mark.parametrize("layers", [[], [SimpleNamespace(conv_states=1)], [SimpleNamespace(keys=None, values=None)]])
def test_a_state_that_is_no_cache(
    layers: list[object], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = transformers.LlamaForCausalLM.forward

    def other(model: Any, use_cache: bool = True, **inputs: Any) -> Any:
        state = SimpleNamespace(past_key_values=SimpleNamespace(layers=layers))
        return state if use_cache else forward(model, use_cache=False, **inputs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", other)
    with pytest.raises(SourceError, match="its state is no cache of keys and values") as caught:
        export_folder(tiny_llama, tmp_path / "model.onnx")
    assert "export --no-cache" in caught.value.remedy
    export_folder(tiny_llama, tmp_path / "model.onnx", cache=False)


def test_unwritable_target(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    monkeypatch.setattr("spq_graph.models.export.trace", lambda *_, **__: None)
    monkeypatch.setattr("spq_graph.models.export._translate", lambda *_: model)
    with pytest.raises(OutputError, match="cannot be written"):
        export_folder(tiny_llama, tmp_path / "absent" / "model.onnx")
