"""The header of a GGUF is read as the package reads it, only faster, and said in the words of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf

from spq_graph.models.gguf_head import Described, read_head
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.support.gguf_files import TOKENS, llama, write_llama


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_llama(path, llama(), quantization=gguf.GGMLQuantizationType.Q4_0)
    return path


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_every_field_and_tensor_is_what_the_package_reads(tmp_path: Path, endian: str) -> None:
    path = tmp_path / "lists.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian[endian])
    for number, value in enumerate(
        [["a", "", "\u00e9\u00df"], [1, -2, 3], [1.5, 2.5], [True, False], "alone", 7, [[1, 2], [3]]]
    ):
        writer.add_key_value(f"some.{number}", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, known = read_head(path), gguf.GGUFReader(path)
    assert list(found.fields) == list(known.fields)
    for name, field in known.fields.items():
        assert found.fields[name].contents() == field.contents(), name
        assert found.fields[name].types == field.types, name


def test_tensors_lie_where_the_package_finds_them(file: Path) -> None:
    found, known = read_head(file).tensors, gguf.GGUFReader(file).tensors
    assert [(t.name, t.tensor_type, t.n_elements, t.data_offset) for t in found] == [
        (t.name, t.tensor_type, t.n_elements, t.data_offset) for t in known
    ]


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff\xff\xff\x00\x00\x00\x00\x00"])
@pytest.mark.parametrize("part", ["count", "length"])
def test_a_list_that_goes_on_beyond_the_file_is_no_header(file: Path, length: bytes, part: str) -> None:
    content = file.read_bytes()
    key = b"tokenizer.ggml.tokens"
    at = content.index(key) + len(key) + (8 if part == "count" else 16)
    file.write_bytes(content[:at] + length + content[at + 8 :])
    with pytest.raises(Exception, match=r"beyond the end|size|index"):
        read_head(file)
    assert Described.of(file, tokenizer=False) is None


def test_it_is_said_in_the_words_of_a_folder(file: Path) -> None:
    found = Described.of(file, tokenizer=True)
    assert found is not None
    assert found.config.items() >= {
        ("model_type", "llama"),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("max_position_embeddings", 128),
        ("bos_token_id", 1),
    }
    names = set(llama().state_dict())
    assert set(found.tensors) == names
    assert {name: stored.shape for name, stored in found.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in llama().state_dict().items()
    }
    assert json.loads(found.tokenizer["tokenizer_config.json"])["bos_token"] == TOKENS[1]


def test_its_tokenizer_says_what_the_unpacked_one_says(file: Path, tmp_path: Path) -> None:
    from spq_graph.models.gguf import unpack

    found = Described.of(file, tokenizer=True)
    assert found is not None
    for name, content in found.tokenizer.items():
        (tmp_path / name).write_text(content)
    out = tmp_path / "out"
    out.mkdir()
    unpack(file, out)
    mine, whole = (TextTokenizer.load(folder) for folder in (tmp_path, out))
    assert (mine.bos_id, mine.eos_id, mine.vocab_size) == (whole.bos_id, whole.eos_id, whole.vocab_size)
    assert list(mine.encode("Hello!! you")) == list(whole.encode("Hello!! you"))


@pytest.mark.parametrize(
    ("keys", "architecture"), [({"split.count": 2}, "llama"), ({"general.type": "adapter"}, "llama"), ({}, "rwkv7")]
)
def test_what_transformers_would_not_read_is_none(tmp_path: Path, keys: dict[str, Any], architecture: str) -> None:
    path = tmp_path / "other.gguf"
    write_llama(path, llama(), keys=keys, architecture=architecture)
    assert Described.of(path, tokenizer=False) is None
