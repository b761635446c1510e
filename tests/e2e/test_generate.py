"""`spq-graph generate` as people use it, on decoders of a few kilobytes; what a cache changes for other verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.conftest import WORDS, write_tokenizer
from tests.support.command import contents, done, spq
from tests.support.decoders import BOS, VOCABULARY, random_ids, write_decoder, write_ids

PROMPT = "w1 w5 w9"
FACTS = {
    "model",
    "prompts",
    "prompt_tokens",
    "texts",
    "tokens",
    "finish",
    "cache",
    "chat",
    "sampling",
    "prefill_seconds",
    "decode_seconds",
    "tokens_per_second",
    "load_seconds",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a cache, the same without, and a tokenizer with a config that says where they end."""
    folder = tmp_path_factory.mktemp("generate")
    write_decoder(folder / "cached.onnx", positions=True, cache=True, spikes={1: 1000.0}, external=True)
    write_decoder(folder / "plain.onnx", positions=True, spikes={1: 1000.0}, external=True)
    write_ids(folder / "calibration.npz")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_tokenizer(tokenizer)
    config = {"max_position_embeddings": 40, "bos_token_id": BOS, "eos_token_id": 2, "vocab_size": VOCABULARY}
    (tokenizer / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def outs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OUT of both decoders, from the same data and decided alike."""
    folder = tmp_path_factory.mktemp("outs")
    for name in ("cached", "plain"):
        done(
            "quantize",
            inputs / f"{name}.onnx",
            "-o",
            folder / name,
            "--calibration",
            inputs / "calibration.npz",
            "--tokenizer",
            inputs / "tokenizer",
            "--no-eval",
        )
    return {name: folder / name for name in ("cached", "plain")}


def generated(path: Path, *arguments: object, prompts: tuple[str, ...] = (PROMPT,)) -> dict[str, Any]:
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    found: dict[str, Any] = done("generate", path, *given, "--json", *arguments).json
    return found


def test_what_json_says(outs: dict[str, Path]) -> None:
    found = generated(outs["cached"], "--max-new-tokens", 10, prompts=(PROMPT, "w3"))
    assert set(found) == FACTS
    assert (found["prompts"], found["prompt_tokens"], found["cache"]) == ([PROMPT, "w3"], [4, 2], True)
    assert found["sampling"] == {"temperature": 0.0, "top_k": None, "top_p": None, "seed": 0}
    tokenizer = TextTokenizer.load(outs["cached"])
    for tokens, text, finish in zip(found["tokens"], found["texts"], found["finish"], strict=True):
        assert finish in ("stop", "length")
        assert text.split() == tokenizer.decode(tokens).split()
        assert finish == "stop" or len(tokens) == 10
    assert found["tokens_per_second"] > 0


def test_text_arrives_on_standard_output(outs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = generated(outs["cached"], prompts=(PROMPT, "w3"))
    pieces: list[str] = []
    monkeypatch.setattr("spq_graph.cli.terminal.write_text", pieces.append)
    monkeypatch.setattr("spq_graph.cli.running.write_text", pieces.append)
    done("generate", outs["cached"], "--prompt", PROMPT, "--prompt", "w3")
    assert len(pieces) > 10
    monkeypatch.undo()
    result = done("generate", outs["cached"], "--prompt", PROMPT, "--prompt", "w3")
    assert result.out == "".join(pieces) == f"{PROMPT}{found['texts'][0]}\n\nw3{found['texts'][1]}\n"
    assert "tokens" in result.err


def test_a_cache_changes_speed_and_nothing_else(inputs: Path, outs: dict[str, Path]) -> None:
    cached, plain = (generated(outs[name]) for name in ("cached", "plain"))
    assert (cached["cache"], plain["cache"]) == (True, False)
    assert cached["tokens"] == plain["tokens"]
    assert "no KV cache" in done("generate", outs["plain"], "--prompt", PROMPT).err
    files = [inputs / f"{name}.onnx" for name in ("cached", "plain")]
    texts = [generated(file, "--tokenizer", inputs / "tokenizer")["texts"] for file in files]
    assert texts[0] == texts[1]


def test_the_same_sites_are_found_and_decided_alike(outs: dict[str, Path]) -> None:
    plans = [json.loads((outs[name] / "plan.json").read_text()) for name in ("cached", "plain")]
    for key in ("key", "role", "layer", "shape", "precision", "reason"):
        cached, plain = ([site[key] for site in plan["sites"]] for plan in plans)
        assert cached == plain, key
    for cached, plain in zip(*(plan["sites"] for plan in plans), strict=True):
        if cached["role"] != "embedding":  # its input is ids
            assert cached["evidence"]["ratio"] == pytest.approx(plain["evidence"]["ratio"], rel=1e-4)
    shown = [done("inspect", outs[name], "--json").json for name in ("cached", "plain")]
    assert shown[0]["glu_blocks"] == shown[1]["glu_blocks"] == 3
    assert shown[0]["unmatched"] == shown[1]["unmatched"] == []


def test_the_quantized_decoder_has_one_perplexity(inputs: Path, tmp_path: Path) -> None:
    """Teacher forcing token by token over the cache, against one pass, and against what `eval` says.

    With exact activations: the fast kernels may round them to bfloat16, and do so by how many rows there are.
    """
    ids = random_ids(4, 32, seed=7)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text('fp8_activations = "exact"\n')
    given = ("--calibration", inputs / "calibration.npz", "--tokenizer", inputs / "tokenizer", "--recipe", recipe)
    done("quantize", inputs / "cached.onnx", "-o", out, *given, "--no-eval")
    runner = Runner(out / "model.onnx")
    state = Decoding(runner, len(ids))
    assert state.cached
    stepwise = np.concatenate([state.feed(ids[:, n : n + 1]) for n in range(ids.shape[1])], axis=1)
    np.savez(tmp_path / "text.npz", input_ids=ids)
    whole = runner.logits(ids, np.ones_like(ids))
    by_step, at_once = perplexity(stepwise, ids), perplexity(whole, ids)
    assert by_step == pytest.approx(at_once, rel=1e-3)
    said = done("eval", out, "--text", tmp_path / "text.npz", "--json").json["perplexity"]
    assert by_step == pytest.approx(said, rel=1e-3)


def perplexity(logits: Any, ids: Any) -> float:
    shifted = logits[:, :-1] - logits[:, :-1].max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, ids[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp((np.log(np.exp(shifted).sum(axis=-1)) - chosen).mean()))


def test_stop_tokens_and_stop_texts(outs: dict[str, Path], tmp_path: Path) -> None:
    free = generated(outs["cached"], "--temperature", 1.0, "--seed", 5)
    words = free["texts"][0].split()
    found = generated(outs["cached"], "--temperature", 1.0, "--seed", 5, "--stop", words[4], "--stop", "absent")
    assert found["texts"][0].split() == words[: words.index(words[4])]
    assert found["finish"] == ["stop"]
    copy = tmp_path / "copy"
    shutil.copytree(outs["cached"], copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [63, free["tokens"][0][4]]}))
    found = generated(copy, "--temperature", 1.0, "--seed", 5)
    assert found["tokens"][0] == free["tokens"][0][: free["tokens"][0].index(free["tokens"][0][4])]
    assert found["finish"] == ["stop"]
    for name in ("generation_config.json", "config.json"):
        (copy / name).unlink()
    text = json.loads((copy / "tokenizer_config.json").read_text()) | {"eos_token": WORDS[free["tokens"][0][4]]}
    (copy / "tokenizer_config.json").write_text(json.dumps(text))
    assert generated(copy, "--temperature", 1.0, "--seed", 5)["tokens"] == found["tokens"]


def test_the_end_of_the_model(outs: dict[str, Path]) -> None:
    for seed in range(20):  # until a text comes to the model's length without its end of sequence
        arguments = ["--max-new-tokens", 100, "--temperature", 1.0, "--seed", seed]
        found = generated(outs["cached"], *arguments)
        if found["finish"] != ["stop"]:
            break
    assert found["finish"] == ["model_length"]
    assert found["prompt_tokens"][0] + len(found["tokens"][0]) == 40
    assert "the model's length is reached" in done("generate", outs["cached"], "--prompt", PROMPT, *arguments).err


def test_sampling_is_reproducible(outs: dict[str, Path]) -> None:
    arguments = ["--temperature", 0.9, "--top-k", 30, "--top-p", 0.95, "--seed"]
    one, same, other = (generated(outs["cached"], *arguments, seed) for seed in (1, 1, 2))
    assert one["tokens"] == same["tokens"] != other["tokens"]
    assert generated(outs["cached"], "--top-k", 5)["sampling"]["temperature"] == 1.0
    assert generated(outs["cached"], "--top-k", 1)["tokens"] == generated(outs["cached"])["tokens"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ([], "prompt", 2),
        (["--prompt", "w1", "--temperature", -1], "temperature", 2),
        (["--prompt", "w1", "--temperature", "nan"], "temperature", 2),
        (["--prompt", "w1", "--top-p", 0], "--top-p", 2),
        (["--prompt", "w1", "--top-k", 0], "top-k", 2),
        (["--prompt", "w1", "--max-new-tokens", 0], "max-new-tokens", 2),
        (["--prompt", "w1 " * 40], "the prompt has 41 tokens, and the model takes 40", 2),
    ],
)
def test_wrong_use(outs: dict[str, Path], arguments: list[Any], message: str, code: int) -> None:
    before = contents(outs["cached"])
    failed = spq("generate", outs["cached"], *arguments)
    assert (failed.code, failed.out) == (code, "")
    assert message in failed.err
    assert "Traceback" not in failed.err
    assert contents(outs["cached"]) == before


def test_a_tokenizer_is_needed_and_the_right_one(inputs: Path, tmp_path: Path) -> None:
    failed = spq("generate", inputs / "cached.onnx", "--prompt", PROMPT)
    assert failed.code == 2
    assert "pass --tokenizer DIR" in failed.err
    content = json.loads((inputs / "tokenizer" / "tokenizer.json").read_text())
    content["model"]["vocab"]["w60"] = VOCABULARY
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    failed = spq("generate", inputs / "cached.onnx", "--prompt", "w60", "--tokenizer", tmp_path)
    assert failed.code == 1
    assert "outside of the vocabulary of 64" in failed.err


def test_an_empty_prompt_is_a_beginning(outs: dict[str, Path]) -> None:
    assert generated(outs["cached"], prompts=("",))["prompt_tokens"] == [1]


def test_text_of_its_own_to_calibrate_on(inputs: Path, tmp_path: Path) -> None:
    """Sampled over the cache, it is the text of the decoder without one."""
    for name in ("cached", "plain"):
        done(
            "calibrate",
            inputs / f"{name}.onnx",
            "-o",
            tmp_path / f"{name}.json",
            "--calibration-tokens",
            200,
            "--window",
            20,
        )
    digests = {json.loads((tmp_path / f"{name}.json").read_text())["data"] for name in ("cached", "plain")}
    assert len(digests) == 1


def test_a_folder_with_and_without_cache(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done("export", tiny_llama, "-o", tmp_path / "cached")
    done("export", tiny_llama, "-o", tmp_path / "plain", "--no-cache")
    prompts = ("w1 w2", "w3 w4 w5 w6")
    cached, plain = (generated(tmp_path / name, prompts=prompts) for name in ("cached", "plain"))
    assert cached["tokens"] == plain["tokens"]
    assert [generated(tmp_path / "cached", prompts=(prompt,))["tokens"][0] for prompt in prompts] == cached["tokens"]
    described = json.loads((tmp_path / "cached" / "genai_config.json").read_text())
    assert described["model"]["decoder"]["num_key_value_heads"] == 2
    assert not (tmp_path / "plain" / "genai_config.json").exists()
