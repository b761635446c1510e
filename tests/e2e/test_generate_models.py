"""Trained models over their cache: the text of one pass after the other, quantized or not, and in another client."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from spq_graph.models.source import REFERENCE
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.sources.environments import python_of
from tests.support.command import done
from tests.support.serving import program

pytestmark = pytest.mark.slow
# Behind the program of docs/serving.md: the token ids that it was given, and all of them.
AND_IDS = """
import json
print()
print(json.dumps([[int(token) for token in tokenizer.encode("<s>The river")], generator.get_sequence(0).tolist()]))
"""
PROMPT = "The river"


@pytest.fixture(scope="module")
def out(exports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of the reference model, decided by ratio, which takes no evaluation."""
    folder: Path = tmp_path_factory.mktemp("reference") / "out"
    arguments = ["--no-eval", "--spike-ratio", 30, "--bits", 8, "--calibration-tokens", 2048]
    done("quantize", "reference", "-o", folder, *arguments)
    return folder


def generated(path: Path, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = done("generate", path, "--json", *arguments).json
    return found


def test_the_reference_model(out: Path) -> None:
    """Token by token what running everything again each time says, in the quantized model."""
    found = generated(out, "--prompt", PROMPT, "--max-new-tokens", 48)
    runner = Runner(out / "model.onnx")
    ids = np.array([TextTokenizer.load(out).encode(PROMPT, special=True)])
    for token in found["tokens"][0]:
        assert runner.logits(ids, np.ones_like(ids))[0, -1].argmax() == token
        ids = np.append(ids, [[token]], axis=1)
    assert found["cache"]


def test_the_perplexity_over_the_cache_is_that_of_one_pass(out: Path) -> None:
    tokenizer, runner = TextTokenizer.load(out), Runner(out / "model.onnx")
    text = (REFERENCE / "evaluation.txt").read_text(encoding="utf-8")[:3000]
    ids = np.array([tokenizer.encode(text, special=True)[:200]])
    state = Decoding(runner, 1)
    steps = np.concatenate([state.feed(ids[:, n : n + 1]) for n in range(ids.shape[1])], axis=1)
    by_step, at_once = (nll(logits[0], ids[0]) for logits in (steps, runner.logits(ids, np.ones_like(ids))))
    assert math.exp(by_step) == pytest.approx(math.exp(at_once), rel=1e-3)


def nll(logits: Any, ids: Any) -> float:
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=-1)
    log_z = np.log(np.exp(wide - top[:, None]).sum(axis=-1)) + top
    return float((log_z - wide[np.arange(len(wide)), ids[1:]]).mean())


def test_stories(shared_data: Path, tmp_path: Path) -> None:
    for name, more in (("cached", []), ("plain", ["--no-cache"])):
        done("export", shared_data / "stories260K", "-o", tmp_path / name, *more)
    prompts = ["--prompt", "Once upon a time", "--prompt", "Tim and his dog", "--max-new-tokens", 60]
    cached, plain = (generated(tmp_path / name, *prompts) for name in ("cached", "plain"))
    assert cached["tokens"] == plain["tokens"]
    alone = [generated(tmp_path / "cached", *prompts[n : n + 2], *prompts[4:])["tokens"][0] for n in (0, 2)]
    assert alone == cached["tokens"]
    assert " there was a little" in cached["texts"][0]


def test_onnxruntime_genai_generates_the_same(out: Path, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    python = python_of("genai", pytestconfig.cache.mkdir("environments"))
    command = [python, "-c", program("import onnxruntime_genai") + AND_IDS]
    client = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert client.returncode == 0, client.stderr
    *streamed, last = client.stdout.splitlines()
    given, everything = json.loads(last)
    assert given == TextTokenizer.load(out).encode(PROMPT, special=True)
    ours = generated(out, "--prompt", PROMPT, "--max-new-tokens", 48)
    assert everything[len(given) :][: len(ours["tokens"][0])] == ours["tokens"][0]
    assert len(ours["tokens"][0]) == 48
    assert "\n".join(streamed).startswith(ours["texts"][0])
