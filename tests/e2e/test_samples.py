"""Beginnings of the text as both models continue them: those of `generate`, in the report, and none without words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

import numpy as np

from spq_graph import Opening, generate
from spq_graph.documents.report import Sample
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.workbench.continued import NEW, PROMPT, beginnings_of
from tests.conftest import write_tokenizer
from tests.support.command import Case, done
from tests.support.decoders import write_decoder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder of words, a text, and what `quantize` made of both at few bits."""
    folder = tmp_path_factory.mktemp("samples")
    write_decoder(folder / "decoder.onnx", layers=1, cache=True, positions=True)
    write_tokenizer(folder)
    drawn = np.random.default_rng(0).integers(3, 50, 1200)
    (folder / "text.txt").write_text(" ".join(f"w{word}" for word in drawn[:400]))
    (folder / "data.txt").write_text(" ".join(f"w{word}" for word in drawn[400:]))
    arguments = ["--calibration", "data.txt", "--text", "text.txt", "--window", 32, "--spike-ratio", 1e6]
    given = [folder / one if str(one).endswith(".txt") else one for one in arguments]
    done("quantize", folder / "decoder.onnx", "-o", folder / "out", *given, "--bits", 4, "--ladder", "short")
    return folder


def samples(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "report.json").read_text())["samples"]
    return found


def test_they_are_what_generate_says(made: Path) -> None:
    found = samples(made / "out")
    assert len(found) == 3
    prompts = [sample["prompt"] for sample in found]
    text = (made / "text.txt").read_text()
    assert all(prompt.strip() in text for prompt in prompts)
    assert len(set(prompts)) == 3
    for name, place in (("fp32", made / "decoder.onnx"), ("quantized", made / "out")):
        again = generate(Opening(place), prompts, chat=False, max_new_tokens=16)
        assert [sample[name] for sample in found] == again.texts
        assert all(tokens for tokens in again.tokens)
    assert any(sample["alike"] < sample["tokens"] for sample in found)  # at 4 bits it says something else


def test_the_page_has_them_and_marks_what_differs(made: Path) -> None:
    page = (made / "out" / "report.html").read_text()
    assert "What it says" in page
    for sample in samples(made / "out"):
        read = Sample.model_validate(sample)
        assert read.prompt.strip() in page
        if rest := read.quantized[read.shared :]:
            assert f"<mark>{rest}</mark>" in page


def test_what_people_are_shown_elsewhere_has_none_of_their_text(made: Path) -> None:
    card = (made / "out" / "README.md").read_text()
    assert not any(sample["prompt"].strip() in card for sample in samples(made / "out"))


def test_without_a_tokenizer_there_are_none(case: Case) -> None:
    assert case.result.json["report"]["samples"] == []
    assert "What it says" not in (case.out / "report.html").read_text()


def rows(*texts: list[int]) -> Sequences:
    length = max(map(len, texts))
    ids = np.array([[*text, *[0] * (length - len(text))] for text in texts])
    return Sequences(ids, np.array([[1] * len(text) + [0] * (length - len(text)) for text in texts]), 1)


def test_beginnings_stand_evenly_over_many_rows() -> None:
    text = rows(*([1, *range(100 * row, 100 * row + 40)] for row in range(6)))
    found = beginnings_of(text, [1], 64)
    assert found == [[1, *range(100 * row, 100 * row + PROMPT - 1)] for row in (0, 2, 4)]


def test_and_within_few() -> None:
    found = beginnings_of(rows([1, *range(100, 400)]), [1], 64)
    assert found == [[1, *range(start, start + PROMPT - 1)] for start in (100, 200, 300)]


def test_a_short_model_keeps_half_of_its_room_and_a_short_row_is_left_out() -> None:
    assert beginnings_of(rows([1, 5, 6, 7, 8], [1, 9], [1, 2, 3, 4]), [1], 6) == [[1, 5, 6], [1, 2, 3]]
    assert NEW >= PROMPT


@pytest.mark.parametrize(
    ("fp32", "quantized", "shared"),
    [
        (" a river bank", " a river bed", " a river "),  # not in the middle of a word
        (" the same", " the same", " the same"),
        ("one", "two", ""),
        (" a b", " a b c", " a "),
        ("", "x", ""),
    ],
)
def test_what_both_say(fp32: str, quantized: str, shared: str) -> None:
    sample = Sample(prompt="", fp32=fp32, quantized=quantized, tokens=1, alike=0)
    assert fp32[: sample.shared] == shared
