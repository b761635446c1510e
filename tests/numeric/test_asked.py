"""What a model says of a text is the same in whatever form its graph gives logits, at the tokens that have any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.find.logits import find_logits
from spq_graph.runtime.generation.sample import sample_ids
from spq_graph.runtime.measures.asked import Stream, gives_last_only
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.kl_meter import KlMeter
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError, GraphError
from spq_graph.workbench.streams import open_stream, open_whole
from tests.support.decoders import VOCABULARY, random_ids, write_decoder
from tests.support.ends import EVERY, LAST, write_with_end

LENGTHS = (20, 20, 12, 2, 12, 7)
PIECES = 9000  # bytes of weights, so that there are several


def ragged() -> Sequences:
    ids = random_ids(len(LENGTHS), max(LENGTHS), seed=3)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    return Sequences(ids * mask, mask, 1, "ragged")


def opened(path: Path, memory: int | None = None) -> Stream:
    source = prepared(path)
    return open_stream(source, memory, find_logits(source.graph))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(write_decoder(tmp_path_factory.mktemp("asked") / "plain.onnx", layers=1))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(write_decoder(tmp_path_factory.mktemp("asked") / "other.onnx", layers=1, seed=1))


@pytest.mark.parametrize("memory", [None, PIECES], ids=["whole", "in_pieces"])
@pytest.mark.parametrize("end", EVERY)
def test_every_token(tmp_path: Path, plain: Runner, end: str, memory: int | None) -> None:
    stream = opened(write_with_end(tmp_path / "model.onnx", end, layers=1), memory)
    expected, _ = score_text(plain, [], ragged())
    found, _ = score_text(stream, [], ragged())
    assert not gives_last_only(stream)
    assert found.tokens == expected.tokens == sum(LENGTHS) - len(LENGTHS)
    assert found.nll == pytest.approx(expected.nll, rel=5e-3 if end in ("half", "bfloat16") else 1e-4)


def test_what_is_declared_is_believed_of_many_pieces(tmp_path: Path) -> None:
    """To ask would read all weights once more; one that lies is told when it is run."""
    stream = opened(write_with_end(tmp_path / "model.onnx", "last_lying", layers=1), PIECES)
    with pytest.raises(GraphError, match="'logits' is declared to hold logits of every token"):
        score_text(stream, [], ragged())


@pytest.mark.parametrize(
    ("end", "memory"), [*((end, None) for end in LAST), *((end, PIECES) for end in LAST if end != "last_lying")]
)
def test_the_last_token(tmp_path: Path, plain: Runner, end: str, memory: int | None) -> None:
    """One token a row: the last one, behind all that stand before it, and never behind padding."""
    stream, text = opened(write_with_end(tmp_path / "model.onnx", end, layers=1), memory), ragged()
    found, _ = score_text(stream, [], text)
    logits = plain.logits(text.ids, text.mask).astype(np.float64)
    rows, ends = np.arange(len(LENGTHS)), np.array(LENGTHS) - 1
    before = logits[rows, ends - 1]
    nll = np.log(np.exp(before).sum(axis=-1)) - before[rows, text.ids[rows, ends]]
    assert gives_last_only(stream)
    assert found.tokens == len(LENGTHS)
    assert found.nll == pytest.approx(nll.mean(), rel=1e-4)


def test_beside_one_that_gives_every_token(tmp_path: Path, plain: Runner, other: Runner) -> None:
    """Both are judged at the last tokens, whichever of the two is the reference."""
    last = opened(write_with_end(tmp_path / "model.onnx", "last", layers=1))
    _, (same, far) = score_text(last, [plain, other], ragged())
    _, (back,) = score_text(other, [last], ragged())
    assert same.tokens == far.tokens == back.tokens == len(LENGTHS)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.top1 == 1
    assert far.kl > 0.01
    assert back.nll == pytest.approx(same.nll, rel=1e-5)


def test_decisions_are_measured_behind_whole_rows(tmp_path: Path, plain: Runner, other: Runner) -> None:
    last, text = opened(write_with_end(tmp_path / "model.onnx", "last", layers=1)), ragged()
    meter = KlMeter(last, text)
    one, two = (model.logits(text.ids, text.mask).astype(np.float64) for model in (plain, other))
    at = np.arange(len(LENGTHS)), np.array(LENGTHS) - 1
    p, q = (np.exp(x[at]) / np.exp(x[at]).sum(axis=-1, keepdims=True) for x in (one, two))
    assert meter.tokens == len(LENGTHS)
    assert meter.kl(other) == pytest.approx(float((p * np.log(p / q)).sum(axis=-1).mean()), rel=1e-4)


class TestFixed:
    """A graph that insists on a length and gives logits of its last token is judged by the token behind that."""

    def test_needs_one_more_token(self, tmp_path: Path, plain: Runner) -> None:
        stream = opened(write_with_end(tmp_path / "model.onnx", "last", layers=1, fixed=(2, 12)))
        ids = random_ids(3, 13, seed=8)
        found, _ = score_text(stream, [], Sequences(ids, np.ones_like(ids), 1))
        before = plain.logits(ids[:, :-1], np.ones_like(ids[:, :-1]))[:, -1].astype(np.float64)
        nll = np.log(np.exp(before).sum(axis=-1)) - before[np.arange(3), ids[:, -1]]
        assert (found.tokens, found.nll) == (3, pytest.approx(nll.mean(), rel=1e-4))

    def test_is_told_where_no_row_has_it(self, tmp_path: Path) -> None:
        stream = opened(write_with_end(tmp_path / "model.onnx", "last", layers=1, fixed=(2, 12)))
        ids = random_ids(3, 12, seed=8)
        with pytest.raises(DataError, match="takes exactly 12 tokens") as refused:
            score_text(stream, [], Sequences(ids, np.ones_like(ids), 1))
        assert "rows of 13 tokens" in refused.value.remedy
        assert KlMeter(stream, Sequences(ids, np.ones_like(ids), 1)).tokens == 3


@pytest.mark.parametrize("end", [*EVERY, *LAST])
def test_text_grows_alike(tmp_path: Path, plain: Runner, end: str) -> None:
    source = prepared(write_with_end(tmp_path / "model.onnx", end, layers=1))
    runner = open_whole(source, 0, tmp_path, find_logits(source.graph))
    states = [Decoding(one, 2) for one in (plain, runner)]
    ids = random_ids(2, 6, seed=4)
    for part in (ids, ids[:, :1], ids[:, 1:2]):
        expected, found = (state.feed(part)[:, -1] for state in states)
        np.testing.assert_allclose(found, expected, rtol=2e-2 if end in ("half", "bfloat16") else 1e-4, atol=2e-2)
    sampled = sample_ids(runner, sequences=3, length=5, seed=1, bos=1)
    assert sampled.max() < VOCABULARY


def test_another_vocabulary_is_no_reference(tmp_path: Path, plain: Runner) -> None:
    wider = opened(write_with_end(tmp_path / "model.onnx", "wider", layers=1))
    with pytest.raises(DataError, match="vocabularies of 80 and 64"):
        score_text(plain, [wider], ragged())


def test_neither_every_nor_the_last(plain: Runner) -> None:
    with pytest.raises(GraphError, match=r"has the shape \(2, 3, 64\) for 2 sequences of 5 tokens"):
        plain.by_token(np.zeros((2, 3, 64), np.float32), (2, 5))
