"""Ids on the Hub: which are some, where they lie in a cache that its client laid out, and what of them is read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from spq_graph.models.hub import HubId, cache, place_of, wanted
from spq_graph.models.source import resolve
from spq_graph.terms.errors import SourceError
from tests.support.hub import cached

MODEL = {"config.json": "{}", "model.safetensors": "x"}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("org/name", HubId("org/name")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("hf://org/name", HubId("org/name", download=True)),
        ("hf:/org/name@refs/pr/1", HubId("org/name", "refs/pr/1", download=True)),
        ("hf://gpt2", HubId("gpt2", download=True)),
        ("https://huggingface.co/org/name/tree/main", HubId("org/name", download=True)),
        ("https://huggingface.co/org/name/", HubId("org/name", download=True)),
        ("name", None),
        ("./org/name", None),
        ("../org", None),
        ("/org/name", None),
        ("org/name/more", None),
        ("org/model.onnx", None),
        ("org/model.gguf", None),
        ("org/name@../../x", None),
        ("hf://../x", None),
        ("hf://a--b/c", None),
        ("", None),
    ],
)
def test_what_is_an_id(source: str, named: HubId | None) -> None:
    assert HubId.of(source) == named


def test_long_words_are_told_apart_at_once() -> None:
    start = time.process_time()
    for text in ("x" * 70_000, "x-" * 35_000, "x." * 35_000 + "/", "x/" * 35_000):
        HubId.of(text)
    assert time.process_time() - start < 1


def test_the_cache_is_where_its_own_client_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache() == Path.home() / ".cache" / "huggingface" / "hub"
    for name, value, place in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "/y", "/y/hub"),
        ("HF_HUB_CACHE", "~/z", str(Path.home() / "z")),
    ):
        monkeypatch.setenv(name, value)
        assert str(cache()) == place


def test_a_model_is_found_by_branch_and_by_commit(kept: Path) -> None:
    older, newer = (cached(kept, "org/name", MODEL, revision=commit * 40) for commit in "ab")
    (kept / "models--org--name" / "refs" / "v1").write_text("a" * 40)
    assert place_of("org/name") == place_of("hf://org/name") == newer
    assert place_of("org/name@v1") == place_of(f"org/name@{'a' * 40}") == older
    assert place_of("org/name@v2") == Path("org/name@v2")
    Path("org/name").mkdir(parents=True)
    assert place_of("org/name") == Path("org/name")  # what lies here is meant before what lies there
    assert place_of("hf://org/name") == newer


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"config.json": "{}", "tokenizer.json": "{}", "README.md": "x"},
        {
            "model.safetensors.index.json": json.dumps(
                {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
            ),
            "model-1.safetensors": "x",
        },
    ],
    ids=["config", "tokenizer", "a shard"],
)
def test_what_is_not_whole_is_not_there(kept: Path, files: dict[str, str]) -> None:
    cached(kept, "org/name", files)
    assert place_of("org/name") == Path("org/name")
    with pytest.raises(SourceError, match="no whole model"):
        resolve("org/name")


def test_a_download_that_was_cut_short(kept: Path) -> None:
    snapshot = cached(kept, "org/name", MODEL)
    (snapshot / "model.safetensors").resolve().unlink()
    assert place_of("org/name") == Path("org/name")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin", "a.py", "onnx/model.onnx", "x/config.json"], ["model.safetensors"]),
        (
            ["model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"],
            ["model-1.safetensors", "model-2.safetensors"],
        ),
        (["pytorch_model-1.bin", "pytorch_model-2.bin", "tf_model.h5"], ["pytorch_model-1.bin", "pytorch_model-2.bin"]),
        (
            ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx"],
            ["onnx/model.onnx", "onnx/model.onnx_data"],
        ),
        (["adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (["one.gguf"], ["one.gguf"]),
        (["one.gguf", "two.gguf"], []),
        (["README.md", "flax_model.msgpack"], []),
    ],
)
def test_which_files_are_read(files: list[str], expected: list[str]) -> None:
    beside = ["config.json", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE"]
    found = wanted([*files, *beside])
    assert [name for name in found if name not in beside] == expected
    assert not expected or set(beside) <= set(found)
