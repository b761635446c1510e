from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents import genai_config

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

ENTRY = {"session.an_entry": "1"}


def inputs(layers: int = 2, shape: tuple[Any, ...] = ("batch_size", 2, "past_sequence_length", 8)) -> dict[str, Any]:
    tokens = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), ("batch_size", "sequence_length"))
    return tokens | {f"past_key_values.{n}.{part}": shape for n in range(layers) for part in ("key", "value")}


def outputs(layers: int = 2) -> list[str]:
    return ["logits", *(f"present.{n}.{part}" for n in range(layers) for part in ("key", "value"))]


def described(config: dict[str, Any] = CONFIG, generation: dict[str, Any] | None = None) -> dict[str, Any]:
    found = genai_config.describe(config, generation or {}, "model.onnx", inputs(), outputs())
    assert found is not None
    return found


def test_what_it_says() -> None:
    model = described()["model"]
    assert (model["type"], model["context_length"], model["vocab_size"]) == ("llama", 128, 64)
    assert [model[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]
    decoder = model["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 8)
    assert (decoder["hidden_size"], decoder["num_attention_heads"], decoder["filename"]) == (32, 4, "model.onnx")
    assert described()["search"] == {"do_sample": False, "max_length": 128, "past_present_share_buffer": False}


def test_generation_config_goes_first() -> None:
    found = described(generation={"eos_token_id": [2, 7], "do_sample": True, "top_p": 0.9, "top_k": None})
    assert (found["model"]["eos_token_id"], found["model"]["pad_token_id"]) == ([2, 7], 2)
    assert (found["search"]["do_sample"], found["search"]["top_p"]) == (True, 0.9)
    assert "top_k" not in found["search"]


def test_types_it_treats_in_a_way_of_its_own_are_plain_decoders() -> None:
    assert described(CONFIG | {"model_type": "phi3"})["model"]["type"] == "decoder"
    assert described(CONFIG | {"eos_token_id": None, "bos_token_id": None})["model"]["eos_token_id"] == 0


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (CONFIG, inputs(layers=0)),
        (CONFIG, inputs() | {"past_key_values.1.value": ("b", 2, "p", 16)}),
        (CONFIG, inputs() | {"past_key_values.x": ("b", 2, "p", 8)}),
        (CONFIG, inputs(shape=("b", "h", "p", 8))),
        (CONFIG, inputs() | {"cache_position": ("s",)}),
        (CONFIG, {"tokens" if name == "input_ids" else name: shape for name, shape in inputs().items()}),
        ({k: v for k, v in CONFIG.items() if k != "max_position_embeddings"}, inputs()),
        ({}, inputs()),
    ],
)
def test_what_cannot_be_described_gets_no_file(config: dict[str, Any], shapes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not genai_config.write(tmp_path, "model.onnx", shapes, outputs(), {})
    assert not (tmp_path / genai_config.NAME).exists()


@pytest.mark.parametrize("names", [outputs()[1:], outputs()[:-1], ["logits", "present_key_values.0.key"]])
def test_outputs_with_other_names_get_no_file(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert not genai_config.write(tmp_path, "model.onnx", inputs(), names, {})


def test_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert genai_config.write(tmp_path, "model.onnx", inputs(), outputs(), ENTRY)
    wanted = described()
    wanted["model"]["decoder"]["session_options"] |= ENTRY
    assert json.loads((tmp_path / genai_config.NAME).read_text()) == wanted
    (tmp_path / "config.json").write_text("{")
    assert not genai_config.write(tmp_path, "model.onnx", inputs(), outputs(), {})


def test_the_config_beside_a_graph_is_taken_over(tmp_path: Path) -> None:
    source, out = tmp_path / "source" / "decoder.onnx", tmp_path / "out"
    source.parent.mkdir()
    out.mkdir()
    beside = source.with_name(genai_config.NAME)
    assert not genai_config.adopt(source, out, "model.onnx", ENTRY)
    for broken in ("{", "[]", '{"model": 3}', '{"model": {"decoder": null}}'):
        beside.write_text(broken, encoding="utf-8")
        assert not genai_config.adopt(source, out, "model.onnx", ENTRY)
    assert list(out.iterdir()) == []
    given = {"model": {"type": "llama", "decoder": {"filename": "decoder.onnx", "head_size": 16}}, "search": {}}
    beside.write_text(json.dumps(given), encoding="utf-8")
    assert genai_config.adopt(source, out, "model.onnx", ENTRY)
    given["model"]["decoder"] |= {"filename": "model.onnx", "session_options": ENTRY}
    assert json.loads((out / genai_config.NAME).read_text(encoding="utf-8")) == given
