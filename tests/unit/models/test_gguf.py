"""A GGUF becomes the folder that it was converted from, weight by weight, or is refused by what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="reads and writes GGUF files: pip install gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with it: pip install accelerate")

import gguf
import torch
from transformers import AutoModelForCausalLM

from spq_graph.models.gguf import unpack
from spq_graph.models.source import resolve
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import SourceError
from tests.support.gguf_files import llama, write_llama

Kind = gguf.GGMLQuantizationType


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[Path], Path]:
    def into_folder(file: Path) -> Path:
        out = tmp_path / "unpacked"
        out.mkdir()
        unpack(file, out)
        return out

    return into_folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_model_it_was_converted_from(
    tmp_path: Path, unpacked: Callable[[Path], Path], tied: bool
) -> None:
    model = llama(tied=tied)
    write_llama(tmp_path / "tiny.gguf", model)
    out = unpacked(tmp_path / "tiny.gguf")
    again = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)
    assert again.config.tie_word_embeddings is tied
    assert "_model_name_or_path" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_blocks_become_the_numbers_that_they_stand_for(
    tmp_path: Path, unpacked: Callable[[Path], Path], kind: gguf.GGMLQuantizationType
) -> None:
    held = write_llama(tmp_path / "tiny.gguf", llama(), quantization=kind)
    again = AutoModelForCausalLM.from_pretrained(unpacked(tmp_path / "tiny.gguf")).state_dict()
    for name, array in held.items():
        np.testing.assert_array_equal(again[name].numpy(), array, err_msg=name)


def test_tokenizer_template_and_special_tokens_come_along(tmp_path: Path, unpacked: Callable[[Path], Path]) -> None:
    write_llama(tmp_path / "tiny.gguf", llama())
    out = unpacked(tmp_path / "tiny.gguf")
    source = resolve(str(out))
    assert (source.bos_token_id, source.eos_token_id, source.vocab_size, source.max_length) == (1, 2, 64, 128)
    tokenizer = TextTokenizer.load(out)
    assert tokenizer.bos_id == 1
    assert "m['content']" in (out / "chat_template.jinja").read_text()


def test_another_tokenizer_is_left_to_whoever_names_it(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf", llama())
    unpack(tmp_path / "tiny.gguf", tmp_path, tokenizer=False)
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_file_without_a_vocabulary_has_no_tokenizer(tmp_path: Path, unpacked: Callable[[Path], Path]) -> None:
    write_llama(tmp_path / "tiny.gguf", llama(), tokens=None)
    assert resolve(str(unpacked(tmp_path / "tiny.gguf"))).tokenizer is None


def test_rotary_factors_of_llama_3_are_recognised(tmp_path: Path, unpacked: Callable[[Path], Path]) -> None:
    """The file holds what follows from the formula; transformers' reader passes it over."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = llama(rope_theta=500000.0, original_max_position_embeddings=8192, **scaling)
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    assert factors.max() == pytest.approx(8)
    write_llama(tmp_path / "tiny.gguf", model, rope_factors=factors)
    again = AutoModelForCausalLM.from_pretrained(unpacked(tmp_path / "tiny.gguf"))
    torch.testing.assert_close(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-4, atol=0)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_positions_are_kept(tmp_path: Path, unpacked: Callable[[Path], Path], scaling: dict[str, Any]) -> None:
    model = llama(**scaling)
    keys = {"llama.rope.scaling.type": scaling["rope_type"], "llama.rope.scaling.factor": scaling["factor"]}
    keys |= {"llama.rope.scaling.original_context_length": scaling.get("original_max_position_embeddings", 0)}
    write_llama(tmp_path / "tiny.gguf", model, keys=keys)
    again = AutoModelForCausalLM.from_pretrained(unpacked(tmp_path / "tiny.gguf"))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_factors": np.linspace(1, 3, 8)}, "not by the formula of Llama 3.1"),
        ({"extra_tensor": True}, "another one"),
        ({"without": "blk.1.ffn_down.weight"}, "lacks 1 of the model's tensors: model.layers.1.mlp.down_proj.weight"),
        ({"keys": {"split.count": 3, "split.no": 0}}, "part 1 of 3"),
        ({"keys": {"general.type": "adapter"}}, "of type adapter"),
        ({"keys": {"llama.rope.scaling.type": "longrope"}}, "scaled as longrope"),
        ({"architecture": "wavtokenizer-dec"}, "architecture wavtokenizer-dec"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_another_model_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_llama(tmp_path / "tiny.gguf", llama(), **change)
    with pytest.raises(SourceError) as caught:
        unpack(tmp_path / "tiny.gguf", tmp_path)
    assert words in caught.value.what
    assert caught.value.where == str(tmp_path / "tiny.gguf")
    assert caught.value.remedy


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused_before_weights_are_unpacked(tmp_path: Path, share: float) -> None:
    file = tmp_path / "tiny.gguf"
    write_llama(file, llama())
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(SourceError, match=r"not a whole GGUF|truncated|lacks"):
        unpack(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_source_is_the_file_or_a_folder_that_holds_just_that(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf", llama())
    source = resolve(str(tmp_path / "tiny.gguf"))
    assert (source.kind, source.origin) == ("gguf", "tiny.gguf")
    assert resolve(str(tmp_path)) == source
    write_llama(tmp_path / "other.gguf", llama())
    with pytest.raises(SourceError, match=r"2 GGUF files: other.gguf, tiny.gguf") as caught:
        resolve(str(tmp_path))
    assert str(tmp_path / "other.gguf") in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"GGUF\x01\0\0\0", "version 1"), (b"GGUF", "version 0"), (b"PK\3\4 or else", "not a GGUF"), (b"", "empty")],
)
def test_another_file_is_refused_without_any_package(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        resolve(str(tmp_path / "x.gguf"))
