"""Decoding over a cache against one pass over everything, and generation on both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.generation import generate as engine
from spq_graph.runtime.generation.generate import Finish, Generated, Limits, continue_prompts
from spq_graph.runtime.generation.sample import finite, sample_ids
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.sessions.cache import Decoding, cache_pairs
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.turns import Conversation, Turns
from spq_graph.terms.errors import ActivationError, GraphError, UsageError
from tests.support.decoder_graphs import decoder
from tests.support.decoders import VOCABULARY, random_ids, write_decoder

PROMPTS = [[1, 5, 9, 33], [1, 40], [1, 7, 8, 9, 10, 11, 12]]
GREEDY = Sampling()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def cached(folder: Path) -> Runner:
    return Runner(write_decoder(folder / "cached.onnx", positions=True, cache=True))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Runner:
    return Runner(write_decoder(folder / "plain.onnx", positions=True))


def run(
    runner: Runner, prompts: list[list[int]], sampling: Sampling = GREEDY, **limits: Any
) -> tuple[Generated, list[list[int]]]:
    told: list[list[int]] = [[] for _ in prompts]

    def on_token(row: int, token: int) -> bool:
        told[row].append(token)
        return False

    found = continue_prompts(runner, prompts, sampling, Limits(**({"new_tokens": 20} | limits)), on_token)
    assert told == [row.tokens for row in found.rows]
    return found, told


@pytest.mark.parametrize("steps", [(12,), (1,) * 12, (5, 1, 1, 3, 2)])
def test_pieces_give_the_logits_of_the_whole(cached: Runner, plain: Runner, steps: tuple[int, ...]) -> None:
    ids = random_ids(3, 12)
    mask = np.ones_like(ids)
    mask[1, :4], mask[2, :1] = 0, 0
    expected = plain.logits(ids, mask)
    state, pieces, done = Decoding(cached, 3), [], 0
    for step in steps:
        new = slice(done, done + step)
        pieces.append(state.feed(ids[:, new], mask[:, new]))
        done += step
    actual = np.concatenate(pieces, axis=1)
    seen = mask.astype(bool)
    assert np.abs(actual[seen] - expected[seen]).max() <= 1e-4
    assert np.abs(cached.logits(ids, mask)[seen] - expected[seen]).max() <= 1e-4  # and so does an empty past
    np.testing.assert_array_equal(state.mask, mask)


def test_the_cache_is_found_by_its_names(cached: Runner, plain: Runner) -> None:
    parts = [f"{layer}.{part}" for layer in range(3) for part in ("key", "value")]
    assert cache_pairs(cached) == {f"past_key_values.{part}": f"present.{part}" for part in parts}
    assert cache_pairs(plain) == {}
    assert Decoding(cached, 1).cached
    assert not Decoding(plain, 1).cached


def test_the_past_is_handed_back_without_a_copy(cached: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    returned: list[int] = []
    bound: list[int] = []
    outputs, bind = onnxruntime.IOBinding.get_outputs, onnxruntime.IOBinding.bind_ortvalue_input

    def spy(self: Any) -> Any:
        values = outputs(self)
        returned.extend(value.data_ptr() for value in values[1:])
        return values

    def spy_on_binding(self: Any, name: str, value: Any) -> None:
        bound.append(value.data_ptr())
        bind(self, name, value)

    monkeypatch.setattr(onnxruntime.IOBinding, "get_outputs", spy)
    monkeypatch.setattr(onnxruntime.IOBinding, "bind_ortvalue_input", spy_on_binding)
    state = Decoding(cached, 1)
    for token in (1, 5, 9):
        state.feed(np.array([[token]]))
    assert bound[6:] == returned[:12]


def test_greedy_is_the_same_with_and_without_cache(cached: Runner, plain: Runner) -> None:
    for prompt in PROMPTS:
        (over, tokens), (whole, expected) = run(cached, [prompt]), run(plain, [prompt])
        assert tokens == expected
        assert (over.cached, whole.cached) == (True, False)
        ids = np.array([prompt])
        for token in tokens[0]:  # and that is what greedy means
            assert plain.logits(ids, np.ones_like(ids))[0, -1].argmax() == token
            ids = np.append(ids, [[token]], axis=1)


@pytest.mark.parametrize("kind", ["cached", "plain"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=3)])
def test_a_padded_batch_equals_its_rows_alone(kind: str, sampling: Sampling, request: pytest.FixtureRequest) -> None:
    runner = request.getfixturevalue(kind)
    _, together = run(runner, PROMPTS, sampling)
    assert together[0] == run(runner, PROMPTS[:1], sampling)[1][0]
    if not sampling.temperature:  # a row's draws depend on its place
        assert together == [run(runner, [prompt])[1][0] for prompt in PROMPTS]


def test_rows_that_have_ended_use_up_no_positions(tmp_path: Path) -> None:
    """The model has a table of 64: a row that is full must not stop the others."""
    onnx.save(decoder(), tmp_path / "table.onnx")
    runner = Runner(tmp_path / "table.onnx")
    prompts, limits = [[1] * 60, [1, 4, 3]], Limits(new_tokens=30, length=64)
    together = continue_prompts(runner, prompts, GREEDY, limits, lambda *_: False)
    assert [row.finish for row in together.rows] == [Finish.MODEL_LENGTH, Finish.LENGTH]
    alone = [continue_prompts(runner, [prompt], GREEDY, limits, lambda *_: False).rows[0].tokens for prompt in prompts]
    assert [row.tokens for row in together.rows] == alone


def test_infinite_logits_are_refused() -> None:
    with pytest.raises(ActivationError, match="NaN or infinite"):
        finite(np.array([[1.0, np.inf, 2.0]], np.float32), "here")
    assert finite(np.array([[1.0, -np.inf]], np.float32), "here").tolist() == [[1.0, -np.inf]]


def test_rows_run_one_by_one_where_padding_would_be_taken_for_text(folder: Path) -> None:
    runner = Runner(write_decoder(folder / "nowhere.onnx"))
    assert not runner.takes_padding
    assert run(runner, PROMPTS)[1] == [run(runner, [prompt])[1][0] for prompt in PROMPTS]


def test_a_graph_of_fixed_shape(folder: Path, plain: Runner) -> None:
    runner = Runner(write_decoder(folder / "fixed.onnx", positions=True, fixed=(2, 16)))
    found, tokens = run(runner, PROMPTS)
    assert [len(row) for row in tokens] == [12, 12, 9]  # two of them share a batch, padded to 4 tokens
    assert [row.finish for row in found.rows] == [Finish.MODEL_LENGTH] * 3
    assert tokens == [full[: len(row)] for row, full in zip(tokens, run(plain, PROMPTS)[1], strict=True)]


def test_sampling_is_reproducible(cached: Runner) -> None:
    warm = Sampling(temperature=1.0, top_k=40, top_p=0.95, seed=1)
    assert run(cached, PROMPTS, warm)[1] == run(cached, PROMPTS, warm)[1]
    assert run(cached, PROMPTS, warm)[1] != run(cached, PROMPTS, Sampling(1.0, 40, 0.95, seed=2))[1]
    assert len({tuple(row) for row in run(cached, [PROMPTS[0]] * 4, warm)[1]}) == 4
    for narrow in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(1e-6)):
        assert run(cached, PROMPTS, narrow)[1] == run(cached, PROMPTS)[1]


def test_ends(cached: Runner) -> None:
    greedy = run(cached, PROMPTS)[1]
    found, tokens = run(cached, PROMPTS, stop_ids=frozenset({greedy[0][3]}))
    assert tokens[0] == greedy[0][: greedy[0].index(greedy[0][3])]
    assert found.rows[0].finish is Finish.STOP
    found, tokens = run(cached, PROMPTS, length=10)
    assert [len(row) for row in tokens] == [6, 8, 3]
    assert {row.finish for row in found.rows} == {Finish.MODEL_LENGTH}
    found, tokens = run(cached, PROMPTS, new_tokens=1)
    assert (tokens, found.tokens_per_second) == ([row[:1] for row in greedy], None)
    assert {row.finish for row in found.rows} == {Finish.LENGTH}
    ended: list[int] = []
    continue_prompts(cached, PROMPTS, GREEDY, Limits(new_tokens=5), lambda row, _: row == 1, ended.append)
    assert (ended[0], sorted(ended)) == (1, [0, 1, 2])


def test_a_prompt_that_fills_the_model(cached: Runner, folder: Path) -> None:
    with pytest.raises(UsageError, match="the prompt has 7 tokens, and the model takes 7"):
        run(cached, PROMPTS, length=7)
    with pytest.raises(GraphError, match="failed on a batch of shape"):
        run(cached, [[1] * 63], new_tokens=20)  # what nobody said: the graph has 64 positions


def test_a_long_prompt_runs_in_pieces(cached: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(cached, PROMPTS)[1]
    fed: list[int] = []
    feed = Decoding.feed

    def spy(self: Decoding, ids: npt.NDArray[np.int64], mask: Any = None) -> Any:
        fed.append(ids.shape[1])
        return feed(self, ids, mask)

    monkeypatch.setattr(Decoding, "feed", spy)
    monkeypatch.setattr(engine, "_PREFILL_LOGITS", 3 * VOCABULARY * 3)
    assert run(cached, PROMPTS)[1] == expected
    assert fed[:4] == [3, 3, 1, 1]


def test_logits_that_are_not_finite(folder: Path) -> None:
    runner = Runner(write_decoder(folder / "broken.onnx", positions=True, cache=True, broken_layer=1))
    with pytest.raises(ActivationError, match=r"broken\.onnx: the logits are NaN or infinite"):
        run(runner, PROMPTS)


def test_calibration_text_is_the_same_over_the_cache(cached: Runner, plain: Runner, folder: Path) -> None:
    for bos in (1, None):
        wanted = {"sequences": 5, "length": 12, "seed": 4, "bos": bos}
        over = sample_ids(cached, **wanted)
        np.testing.assert_array_equal(over, sample_ids(plain, **wanted))
        assert over.shape == (5, 12)
        assert bos is None or (over[:, 0] == 1).all()
    turns = Turns(opening=(1, 50, 51), to_answer=(53, 52), to_ask=(53, 51), stops=frozenset({2}))
    talk = {"sequences": 5, "length": 24, "seed": 4, "bos": 1, "turns": partial(Conversation, turns, longest=5)}
    over = sample_ids(cached, **talk)
    np.testing.assert_array_equal(over, sample_ids(plain, **talk))
    assert (over[:, :3] == turns.opening).all()
    behind = [row[3:].tolist().index(53) for row in over]
    assert max(behind) <= 5
    assert all(row[3 + end : 5 + end].tolist() == [53, 52] for row, end in zip(over, behind, strict=True))
    fixed = Runner(write_decoder(folder / "sampled.onnx", positions=True, fixed=(3, 16)))
    assert sample_ids(fixed, sequences=4, length=12, seed=4, bos=1).shape == (4, 12)


def test_half_precision_caches(folder: Path, cached: Runner) -> None:
    """The past takes the type that the graph gives it."""
    model = onnx.load(cached.path)
    for value in [*model.graph.input, *model.graph.output]:
        if "past" in value.name or "present" in value.name:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    nodes = []
    for node in model.graph.node:
        past = next((name for name in node.input if name.startswith("past_key")), None)
        if past is None:
            nodes.append(node)
            continue
        out = node.output[0]
        node.input[list(node.input).index(past)] = f"{past}.wide"
        node.output[0] = f"{out}.wide"
        nodes += [
            onnx.helper.make_node("Cast", [past], [f"{past}.wide"], to=1),
            node,
            onnx.helper.make_node("Cast", [f"{out}.wide"], [out], to=10),
        ]
    for node in nodes:
        if node.op_type == "Squeeze" and node.input[0].startswith("present"):
            node.input[0] += ".wide"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    onnx.save(model, folder / "half.onnx")
    assert run(Runner(folder / "half.onnx"), PROMPTS, new_tokens=4)[1] == run(cached, PROMPTS, new_tokens=4)[1]
