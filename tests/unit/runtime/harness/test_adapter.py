from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'spq-graph[eval]'")

from spq_graph.runtime.harness.adapter import OnnxLM
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.conftest import write_tokenizer
from tests.support.decoders import write_decoder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(write_decoder(tmp_path_factory.mktemp("model") / "m.onnx", layers=2, cache=True, positions=True))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    return TextTokenizer.load(folder)


def asked(*arguments: Any) -> Any:
    """A request as the harness makes one."""
    return SimpleNamespace(args=arguments)


def alone(runner: Runner, row: list[int], count: int) -> tuple[float, bool]:
    """Log-likelihood of the last tokens of one row, each from the tokens before it and nothing else."""
    total, met = 0.0, True
    for at in range(len(row) - count, len(row)):
        ids = np.array([row[:at]])
        logits = runner.logits(ids, np.ones_like(ids))[0, -1].astype(np.float64)
        total += float(logits[row[at]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        met &= int(logits.argmax()) == row[at]
    return total, met


def test_likelihoods_are_those_of_each_token_behind_all_before_it(runner: Runner, tokenizer: TextTokenizer) -> None:
    model = OnnxLM(runner, tokenizer, max_length=64)
    pairs = [("w3 w4 w5", " w6 w7"), ("w9", " w3"), ("w3 w4 w5", " w6 w8"), ("", "w5 w6"), ("w3", "")]
    found = model.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    rows = [([1, 6, 7, 8, 9, 10], 2), ([1, 12, 6], 1), ([1, 6, 7, 8, 9, 11], 2), ([1, 8, 9], 2)]
    for (score, greedy), (row, count) in zip(found, rows, strict=False):
        expected, met = alone(runner, row, count)
        assert score == pytest.approx(expected, abs=1e-4)
        assert greedy == met
    assert found[-1] == (0.0, True)
    assert model.cut == 0


def test_what_is_too_long_loses_its_beginning(runner: Runner, tokenizer: TextTokenizer) -> None:
    model = OnnxLM(runner, tokenizer, max_length=8)
    words = [3 + n % 50 for n in range(20)]
    text = " ".join(f"w{n - 3}" for n in words)
    ((score, _),) = model.loglikelihood([asked(text, " w40 w41")])
    assert score == pytest.approx(alone(runner, [*words[-7:], 43, 44], 2)[0], abs=1e-4)
    assert model.cut == 1


def test_a_text_that_has_its_beginning_gets_no_second_one(runner: Runner, tokenizer: TextTokenizer) -> None:
    model = OnnxLM(runner, tokenizer, max_length=64)
    assert model.tok_encode("<s> w3") == model.tok_encode("w3") == [1, 6]
    assert model.tok_encode("w3", add_special_tokens=False) == [6]
    assert model.prefix_token_id == 1
    assert model.eot_token_id == 2


def test_a_whole_text_is_predicted_once_in_windows_that_are_full(runner: Runner, tokenizer: TextTokenizer) -> None:
    model = OnnxLM(runner, tokenizer, max_length=6)
    ids = [3 + (n * 7) % 50 for n in range(10)]
    text = " ".join(f"w{n - 3}" for n in ids)
    (found,) = model.loglikelihood_rolling([asked(text)])
    # The first six tokens behind BOS, then four more behind the three before them: six tokens go in, each time.
    first, _ = alone(runner, [1, *ids[:6]], 6)
    second, _ = alone(runner, ids[3:10], 4)
    assert found == pytest.approx(first + second, abs=1e-4)
    assert model.cut == 0


def test_text_goes_on_as_greedy_decoding_has_it_up_to_what_ends_it(runner: Runner, tokenizer: TextTokenizer) -> None:
    def greedy(ids: list[int], count: int) -> list[int]:
        for _ in range(count):
            logits = runner.logits(np.array([ids]), np.ones((1, len(ids)), dtype=np.int64))
            ids = [*ids, int(logits[0, -1].argmax())]
        return ids[-count:]

    model = OnnxLM(runner, tokenizer, max_length=64)
    prompts = ["w3 w4 w5", "w9", "w20 w21 w22 w23"]
    settings = {"until": [], "max_gen_toks": 5, "do_sample": False}
    found = model.generate_until([asked(text, settings) for text in prompts])
    expected = [greedy([1, *tokenizer.encode(text)], 5) for text in prompts]
    assert found == [tokenizer.decode(ids) for ids in expected]
    stop = tokenizer.decode(expected[0][2:3])
    ended = model.generate_until([asked(prompts[0], settings | {"until": [stop]}), asked(prompts[1], settings)])
    assert ended == [found[0].split(stop)[0], found[1]]
    stopping = OnnxLM(runner, tokenizer, max_length=64, stop_ids=frozenset({expected[1][2]}))
    assert stopping.generate_until([asked(prompts[1], settings)]) == [
        tokenizer.decode(expected[1][: expected[1].index(expected[1][2])])
    ]


def test_progress_is_told_to_the_end(runner: Runner, tokenizer: TextTokenizer) -> None:
    told: list[tuple[int, int]] = []
    model = OnnxLM(runner, tokenizer, max_length=64, tick=lambda done, total: told.append((done, total)))
    model.loglikelihood([asked("w3", f" w{n}") for n in (4, 5)] + [asked("w4", " w5")])
    assert told[-1] == (2, 2)
    model.generate_until([asked("w3", {"until": [], "max_gen_toks": 2})])
    assert told[-1] == (1, 1)


@pytest.mark.slow
def test_the_harness_has_the_same_of_the_model_itself(tiny_llama: Path, tmp_path: Path) -> None:
    """Against its own class over transformers: the float model's ONNX scores as the model does."""
    pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    from spq_graph.models.export import export_folder

    export_folder(tiny_llama, tmp_path / "model.onnx")
    tokenizer = TextTokenizer.load(tiny_llama)
    ours = OnnxLM(Runner(tmp_path / "model.onnx"), tokenizer, max_length=64, stop_ids=frozenset({2}))
    theirs = HFLM(str(tiny_llama), device="cpu", dtype="float32", batch_size=2, max_length=64)
    words = [" ".join(f"w{(3 * n + k) % 60}" for n in range(size)) for k, size in enumerate((1, 4, 9, 80))]
    pairs = [asked(context, f" w{n} w{n + 9}") for context in words for n in (4, 11)]
    for (mine, met), (its, also) in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert mine == pytest.approx(its, abs=2e-3)
        assert met == also
    settings = {"until": ["w5"], "max_gen_toks": 12, "do_sample": False}
    prompts = [SimpleNamespace(args=(text, settings)) for text in words]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
