"""Refusals of ids, tasks and what is measured on them, each made and put right as it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, normalizers

pytest.importorskip("onnxruntime")

from spq_graph.documents.value_range import ValueRange
from spq_graph.jobs.doctor import doctor
from spq_graph.runtime.generation.generate import Limits, continue_prompts
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.tasks import load_task, score_task
from spq_graph.runtime.measures.timing import load_apart
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids, Sequences
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.support.decoders import random_ids, write_decoder
from tests.support.following import Told
from tests.support.words import words

follows = pytest.mark.follows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("model") / "model.onnx", layers=1)


# ------------------------------------------------------------------------------------------------- tasks

CHOICE = {"query": "w1 w2", "choices": ["w3", "w4"], "gold": 1}
CONTEXTS = {"context_options": ["w1", "w2"], "continuation": "w3", "gold": 0}
PLAIN = {"context": "w1", "continuation": "w2"}


def task_of(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@follows("runtime/measures/tasks.py:load_task", "a file holds either")
def test_a_mixed_task(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        load_task(task_of(tmp_path / "both.jsonl", CHOICE, PLAIN))
    for row in (CHOICE, PLAIN):
        assert len(load_task(task_of(tmp_path / "one.jsonl", row)).examples) == 1


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], marks=follows("runtime/measures/tasks.py:load_task", "no examples")),
        pytest.param([[1]], marks=follows("runtime/measures/tasks.py:_example", "a row of unknown form")),
        pytest.param(
            [{"context": "", "continuation": "w1"}],
            marks=follows("runtime/measures/tasks.py:_example", "is empty or not a string"),
        ),
    ],
    ids=["no rows", "another form", "no text"],
)
def test_a_task_of_wrong_rows(refusal: Told, tmp_path: Path, rows: list[object]) -> None:
    """Each of the three forms of a row is taken, one JSON object a line, with text in all of it."""
    with refusal:
        load_task(task_of(tmp_path / "task.jsonl", *rows))
    for row in (CHOICE, CONTEXTS, PLAIN):
        assert len(load_task(task_of(tmp_path / "task.jsonl", row, row)).examples) == 2
        if "form" in refusal.error.what:
            assert all(key in refusal.error.remedy for key in row)


@follows("runtime/measures/tasks.py:_example", "not valid JSON")
def test_a_task_over_several_lines(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(CHOICE, indent=1), encoding="utf-8")
    with refusal:
        load_task(path)
    assert len(load_task(task_of(path, CHOICE)).examples) == 1


@follows("runtime/measures/tasks.py:_example", "gold is")
def test_gold_beyond_the_options(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        load_task(task_of(tmp_path / "task.jsonl", CHOICE | {"gold": 2}))
    numbers = [int(word) for word in refusal.error.remedy.removesuffix(".").split() if word.isdigit()]
    for gold in numbers:
        assert load_task(task_of(tmp_path / "task.jsonl", CHOICE | {"gold": gold})).examples[0].gold == gold


def logits(ids: Ids, mask: Ids) -> np.ndarray:
    return np.zeros((*ids.shape, 32), np.float32)


@follows("runtime/measures/tasks.py:score_task", "leaves no example")
def test_a_limit_of_nothing(refusal: Told, tmp_path: Path) -> None:
    task = load_task(task_of(tmp_path / "task.jsonl", CHOICE))
    with refusal:
        score_task(task, TextTokenizer(words()), logits, max_length=16, limit=0)
    least = int(refusal.error.remedy.split()[1])
    assert score_task(task, TextTokenizer(words()), logits, max_length=16, limit=least).n == 1


@follows("runtime/measures/tasks.py:score_task", "have no room")
def test_rows_without_room(refusal: Told, tmp_path: Path) -> None:
    task, tokenizer = load_task(task_of(tmp_path / "task.jsonl", CHOICE)), TextTokenizer(words("<s> $A"))
    with refusal:
        score_task(task, tokenizer, logits, max_length=1)
    least = int(refusal.error.remedy.split()[0])
    assert score_task(task, tokenizer, logits, max_length=least).n == 1


@follows("runtime/measures/tasks.py:_request")
def test_a_tokenizer_that_leaves_nothing(refusal: Told, tmp_path: Path) -> None:
    task, other = load_task(task_of(tmp_path / "task.jsonl", CHOICE)), words()
    other.normalizer = normalizers.Replace(Regex(".+"), "")
    with refusal:
        score_task(task, TextTokenizer(other), logits, max_length=16)
    assert score_task(task, TextTokenizer(words()), logits, max_length=16).n == 1


# ------------------------------------------------------------------------------------------------- what runs


@follows("runtime/measures/evaluate.py:nothing_to_predict", "there is no token")
def test_nothing_to_predict(refusal: Told, model: Path) -> None:
    runner, ids = Runner(model), random_ids(2, 8)
    alone = np.zeros_like(ids)
    alone[:, 0] = 1
    with refusal:
        score_text(runner, [], Sequences(ids, alone))
    assert score_text(runner, [], Sequences(ids, np.ones_like(ids)))[0].tokens == 14


@follows("runtime/measures/timing.py:load_apart")
def test_what_does_not_load(refusal: Told, model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with refusal:
        load_apart(tmp_path / "model.onnx", "cpu", 1)
    assert doctor().absent["cpu"] is None
    assert load_apart(model, "cpu", 1).seconds > 0


@follows("spq_graph/documents/value_range.py:ValueRange.observe")
def test_nothing_but_padding(refusal: Told) -> None:
    low, ids = np.zeros((2, 4), np.float32), random_ids(2, 4)
    by_channel = np.zeros(8, np.float32), np.ones(8, np.float32)
    mask = np.zeros_like(ids)
    with refusal:
        ValueRange.observe(low, low, by_channel, ids, mask)
    mask[1] = 1
    assert ValueRange.observe(low[1:], low[1:], by_channel, ids[1:], mask[1:]).tokens == 4


def continued(model: Path, prompt: Sequence[int], length: int | None) -> int:
    limits = Limits(2, frozenset(), length)
    found = continue_prompts(Runner(model), [list(prompt)], Sampling(), limits, lambda *_: False, lambda _: None)
    return len(found.rows[0].tokens)


@follows("runtime/generation/generate.py:_check_lengths")
def test_a_prompt_that_fills_the_model(refusal: Told, model: Path) -> None:
    with refusal:
        continued(model, range(8), 8)
    assert continued(model, range(6), 8) == 2


@follows("runtime/generation/sampling.py:Sampling.__post_init__", "temperature")
def test_temperatures(refusal: Told) -> None:
    with refusal:
        Sampling(temperature=-1)
    for value in (0, 1):
        assert Sampling(temperature=value).temperature == value


@follows("runtime/generation/sampling.py:Sampling.__post_init__", "likeliest")
def test_top_k(refusal: Told) -> None:
    with refusal:
        Sampling(top_k=0)
    assert replace(Sampling(), top_k=1).top_k == 1


@follows("runtime/generation/sampling.py:Sampling.__post_init__", "probability")
def test_top_p(refusal: Told) -> None:
    with refusal:
        Sampling(top_p=0.0)
    for value in (1e-9, 1.0):
        assert Sampling(top_p=value).top_p == value
