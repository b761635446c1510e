"""Perplexity, KL and agreement against float64 numpy, on every token that is to be predicted and on no other."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.judged import add_batch, reference_of
from spq_graph.runtime.measures.kept import MEMORY, SPARE_DISK, Kept, Place, place_for
from spq_graph.runtime.measures.kl_meter import KlMeter
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import Batch
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import CheckError, DataError
from tests.support.decoders import random_ids, write_decoder

Array = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[np.float32]) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def expected(base: npt.NDArray[np.float32], model: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Array:
    """nll, kl and top1, as means."""
    p, q = log_softmax(base), log_softmax(model)
    nll, kl = -q[np.arange(len(targets)), targets].mean(), (np.exp(p) * (p - q)).sum(axis=-1).mean()
    return np.array([nll, kl, (base.argmax(-1) == model.argmax(-1)).mean()])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Runner]:
    folder = tmp_path_factory.mktemp("models")
    return [Runner(write_decoder(folder / f"{seed}.onnx", seed=seed, layers=1)) for seed in range(3)]


@pytest.fixture(scope="module")
def padded() -> Sequences:
    ids = random_ids(70, 32)
    lengths = np.random.default_rng(5).integers(1, 33, len(ids))
    lengths[0], lengths[1] = 32, 1
    mask = (np.arange(32) < lengths[:, None]).astype(np.int64)
    return Sequences(ids * mask, mask, prefix=1)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_against_numpy(models: list[Runner], padded: Sequences, prefix: int) -> None:
    sequences = Sequences(padded.ids, padded.mask, prefix)
    base, scores = score_text(models[0], models, sequences)
    rows: list[list[npt.NDArray[np.float32]]] = [[] for _ in models]
    targets: list[int] = []
    for ids, mask in zip(sequences.ids, sequences.mask, strict=True):
        length = int(mask.sum())  # alone and without padding: the mask must have done its work
        first = max(prefix - 1, 0)
        for model, collected in zip(models, rows, strict=True):
            collected.append(model.logits(ids[None, :length], mask[None, :length])[0, first : length - 1])
        targets += ids[first + 1 : length].tolist()
    whole = [np.concatenate(collected) for collected in rows]
    assert base.tokens == len(targets) == int(sequences.predicted.sum())
    assert (base.kl, base.top1) == (0.0, 1.0)
    for score, logits in zip(scores, whole, strict=True):
        wanted = expected(whole[0], logits, np.array(targets))
        np.testing.assert_allclose([score.nll, score.kl, score.top1], wanted, rtol=1e-5, atol=1e-6)
        assert score.perplexity == pytest.approx(np.exp(score.nll))
        assert score.tokens == base.tokens
    assert scores[0].nll == pytest.approx(base.nll, rel=1e-9)


def test_small_differences_do_not_cancel() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0, 6, (200, 1000)).astype(np.float32) + np.float32(50)
    targets = generator.integers(0, 1000, 200)
    for step in (1e-1, 1e-2, 1e-3):
        model = base + (step * generator.normal(size=base.shape)).astype(np.float32)
        score = Score()
        add_batch(score, model, reference_of(base, targets))
        assert score.kl == pytest.approx(expected(base, model, targets)[1], rel=0.02)


def test_extreme_logits_stay_finite() -> None:
    base = np.array([[0.0, 900.0, -900.0], [5.0, 1.0, 0.0]], dtype=np.float32)
    score, targets = Score(), np.array([2, 0])
    add_batch(score, base[:, ::-1].copy(), reference_of(base, targets))
    np.testing.assert_allclose([score.nll, score.kl, score.top1], expected(base, base[:, ::-1], targets), rtol=1e-5)
    wrong = Score(tokens=1, nll_sum=1e4)
    assert np.isfinite(wrong.perplexity)  # a report holds finite numbers
    assert wrong.perplexity > 1e300


def test_the_meter_scores_as_text_is_scored(models: list[Runner], padded: Sequences) -> None:
    meter = KlMeter(models[0], padded)
    _, scores = score_text(models[0], models, padded)
    assert meter.tokens == scores[0].tokens
    assert [meter.kl(model) for model in models] == pytest.approx([s.kl for s in scores], rel=1e-6, abs=1e-9)


def test_meter_keeps_within_its_memory(models: list[Runner]) -> None:
    ids = random_ids(64, 64)
    sequences = Sequences(ids, np.ones_like(ids))
    whole, part = KlMeter(models[0], sequences), KlMeter(models[0], sequences, memory=1)
    assert 0 < part.tokens < whole.tokens


@pytest.mark.parametrize("form", ["half in memory", "half in a file"])
def test_half_precision_costs_the_kl_next_to_nothing(models: list[Runner], tmp_path: Path, form: str) -> None:
    """All tokens are used; of the KL a thousandth is lost at most, and nothing where a model is the reference."""
    ids = random_ids(64, 64)
    sequences = Sequences(ids, np.ones_like(ids))
    exact = KlMeter(models[0], sequences)
    half = 2 * ids.size * models[0].logits(ids[:1], np.ones_like(ids[:1])).shape[-1]
    meter = KlMeter(models[0], sequences, half if form == "half in memory" else 1, tmp_path)
    assert (meter.tokens, meter.fits) == (exact.tokens, None)
    assert meter.kl(models[0]) == 0.0
    for model in models[1:]:
        assert meter.kl(model) == pytest.approx(exact.kl(model), rel=1e-3)
        assert meter.kl(model) != exact.kl(model)  # it was half precision
    assert not list(tmp_path.iterdir())  # the file has no name that could be left behind


@pytest.mark.parametrize("vocabulary", [2_048, 49_152, 152_000])
def test_what_a_recipe_asks_for_has_a_place_whatever_the_vocabulary(tmp_path: Path, vocabulary: int) -> None:
    """Of 49,152 words 1,022 tokens were left of 4,096, and of 152,000 about 441."""
    place = place_for(Recipe().sensitivity_tokens, vocabulary, MEMORY, tmp_path)
    assert place.tokens is None
    assert (place.half, place.folder) == ((False, None) if vocabulary == 2_048 else (True, tmp_path))
    without = place_for(Recipe().sensitivity_tokens, vocabulary, MEMORY, None)
    assert without.tokens == (None if vocabulary == 2_048 else MEMORY // (2 * vocabulary))


def test_half_precision_over_a_large_vocabulary(tmp_path: Path) -> None:
    """The KL of a close model, over as many words as models have; sums in half precision would be lost in rounding."""
    generator = np.random.default_rng(3)
    base = generator.normal(0, 2.5, (48, 50_000)).astype(np.float32)
    model = base + generator.normal(0, 0.01, base.shape).astype(np.float32)
    p, q = log_softmax(base), log_softmax(model)
    kept = Kept(Place(half=True, folder=tmp_path))
    kept.add(base)
    kept.finish()
    found, exact = float(kept.kl(0, model).mean()), float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    assert exact < 1e-4
    assert found == pytest.approx(exact, rel=5e-3)


def test_words_that_cannot_come_have_no_part_in_kl() -> None:
    base, model = np.array([[0.0, 1.0, -np.inf]], np.float32), np.array([[0.5, 1.0, -9.0]], np.float32)
    p, q = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum(), np.exp([0.5, 1.0]) / np.exp([0.5, 1.0, -9.0]).sum()
    for half in (False, True):
        kept = Kept(Place(half=half))
        kept.add(base.copy())
        assert kept.kl(0, model.copy())[0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3)


def test_a_disk_without_room_means_fewer_tokens_and_is_told(
    models: list[Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(64, 64)
    sequences = Sequences(ids, np.ones_like(ids))
    full = KlMeter(models[0], sequences, memory=1 << 15, folder=tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=SPARE_DISK))
    part = KlMeter(models[0], sequences, memory=1 << 15, folder=tmp_path)
    assert full.fits is None
    assert part.fits is not None
    assert 0 < part.tokens <= part.fits < full.tokens


def test_a_disk_that_fills_up_meanwhile(models: list[Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    ids = random_ids(64, 64)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    meter = KlMeter(models[0], Sequences(ids, np.ones_like(ids)), memory=1 << 15, folder=tmp_path)
    assert meter.fits is not None
    assert meter.kl(models[1]) > 0


def test_standard_errors_are_those_of_windows_drawn_anew(models: list[Runner]) -> None:
    """Clustered by window, against drawing windows again and again; errors of independent tokens would be too small."""
    generator = np.random.default_rng(7)
    lengths = generator.integers(5, 40, 60)
    score, rows = Score(), []
    for window, length in enumerate(lengths):
        nll = np.abs(generator.normal(3 + generator.normal(0, 0.5), 0.3, length))  # what a window shares
        kl = nll / 100
        rows.append((length, nll.sum(), kl.sum()))
        score.add(np.full(length, window), nll, kl)
    table = np.array(rows)
    drawn = table[generator.integers(0, len(table), (4000, len(table)))].sum(axis=1)
    means = drawn[:, 1:] / drawn[:, :1]
    errors = (score.nll_stderr, score.kl_stderr, score.perplexity_stderr)
    expected_errors = (*means.std(axis=0), np.exp(means[:, 0]).std())
    assert errors == pytest.approx(expected_errors, rel=0.1)
    independent = np.sqrt(table[:, 1].var() / len(table)) / np.sqrt(table[:, 0].mean())
    assert independent != pytest.approx(errors[0], rel=0.5)


def test_windows_are_told_apart_across_batches_and_parts(models: list[Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(40, 64)
    sequences = Sequences(ids, np.ones_like(ids), prefix=1)
    monkeypatch.setattr("spq_graph.runtime.measures.judged.PART_BYTES", 3000)
    base, (score,) = score_text(models[0], [models[1]], sequences)
    alone = [
        score_text(models[0], [models[1]], Sequences(ids[n : n + 1], sequences.mask[n : n + 1], 1)) for n in range(40)
    ]
    for found, of in ((base, [one[0] for one in alone]), (score, [one[1][0] for one in alone])):
        assert len(found.windows) == 40
        expected_error = np.std([one.nll for one in of], ddof=1) / np.sqrt(40)
        assert found.nll_stderr == pytest.approx(expected_error, rel=1e-4)
        assert {one.nll_stderr for one in of} == {None}  # one window tells nothing of how windows differ
    assert (base.kl_stderr, KlMeter(models[0], sequences).score(models[1]).kl_stderr) == pytest.approx(
        (0.0, score.kl_stderr), rel=1e-5
    )


def test_nothing_to_predict(models: list[Runner]) -> None:
    alone = Sequences(np.ones((2, 1), np.int64), np.ones((2, 1), np.int64))
    with pytest.raises(DataError, match="no token to predict"):
        score_text(models[0], [], alone)


def test_logits_that_are_not_numbers(models: list[Runner], tmp_path: Path) -> None:
    broken = Runner(write_decoder(tmp_path / "broken.onnx", layers=1, broken_layer=0))
    ids = random_ids(2, 8)
    with pytest.raises(CheckError, match="NaN") as caught:
        score_text(models[0], [models[1], broken], Sequences(ids, np.ones_like(ids)))
    assert "broken.onnx" in caught.value.where
    assert isinstance(caught.value, LogitsNotFiniteError)
    assert caught.value.number == 1
    with pytest.raises(LogitsNotFiniteError) as caught_first:
        score_text(broken, [models[0]], Sequences(ids, np.ones_like(ids)))
    assert caught_first.value.number is None
    with pytest.raises(LogitsNotFiniteError):
        KlMeter(models[0], Sequences(ids, np.ones_like(ids))).kl(broken)


class Edited:
    """A model of whose logits some are something else."""

    def __init__(self, model: Runner, edit: Callable[[npt.NDArray[np.float32]], None]) -> None:
        self.model, self.edit = model, edit
        self.path, self.fixed_shape, self.last_only = model.path, model.fixed_shape, model.last_only
        self.vocabulary = model.vocabulary

    def stream(self, batches: Sequence[Batch], columns: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        for logits in self.model.stream(batches, columns):
            changed = logits.copy()
            self.edit(changed)
            yield changed


def edited(model: Runner, edit: Callable[[npt.NDArray[np.float32]], None]) -> Stream:
    return cast(Stream, Edited(model, edit))


def put(places: Any, value: float) -> Callable[[npt.NDArray[np.float32]], None]:
    return lambda logits: logits.__setitem__(places, value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 3, 5), (0, -1, 0), (1, 0, 63)])
def test_one_logit_of_any_token_is_enough(models: list[Runner], value: float, place: tuple[int, ...]) -> None:
    """Of the last token nothing is scored, and of what the tokenizer prepends neither."""
    ids = random_ids(2, 8)
    rows = Sequences(ids, np.ones_like(ids), prefix=2)
    broken = edited(models[1], put(place, value))
    with pytest.raises(LogitsNotFiniteError) as caught:
        score_text(models[0], [broken], rows)
    np.testing.assert_array_equal(caught.value.ids, ids[place[0]][None])
    with pytest.raises(LogitsNotFiniteError):
        score_text(broken, [], rows)


def test_a_token_that_the_graph_rules_out_is_no_fault(models: list[Runner]) -> None:
    """-inf for every token of the text: its probability is 0, and that is what is scored."""
    ids = random_ids(4, 16)
    ids[ids == 40] = 41
    rows = Sequences(ids, np.ones_like(ids))
    ruled = [edited(model, put((..., 40), -np.inf)) for model in models[:2]]
    low = [edited(model, put((..., 40), -500.0)) for model in models[:2]]
    (base, (score,)), (other, (expected_score,)) = (score_text(a, [b], rows) for a, b in (ruled, low))
    assert (base.nll, score.nll) == pytest.approx((other.nll, expected_score.nll), rel=1e-6)
    assert score.kl == pytest.approx(expected_score.kl, rel=1e-5)
    assert np.isfinite(score_text(ruled[0], [models[1]], rows)[1][0].kl)
