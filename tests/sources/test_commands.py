"""Foreign decoders with a cache through the command line: the text of torch, before and after quantization."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spq_graph.models.loading import load_causal_lm
from tests.families.family import VOCABULARY
from tests.sources.clients import GENAI
from tests.sources.environments import python_of
from tests.sources.examine import Produced
from tests.support.command import contents, done

pytestmark = pytest.mark.families
PROMPTS = ("w1 w5 w9 w33", "w20", "w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17")


def greedy(folder: Path, prompt: list[int], new: int) -> list[int]:
    """What torch goes on with."""
    import torch

    model, ids = load_causal_lm(folder), torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize(
    ("source", "family"), [("optimum", "llama"), ("optimum", "phi3"), ("genai-fp32", "llama"), ("genai-fp32", "gemma2")]
)
def test_every_verb(source: str, family: str, produced: Produced, tmp_path: Path) -> None:
    model, folder = produced.model(source, family), produced.origin(source, family)
    before = contents(model.parent, folder)
    for name, seed in (("calibration", 0), ("text", 1)):
        ids = np.random.default_rng(seed).integers(3, VOCABULARY, (8, 32))
        np.savez(tmp_path / f"{name}.npz", input_ids=ids)
    data = ["--calibration", tmp_path / "calibration.npz", "--tokenizer", folder]
    done("quantize", model, "-o", tmp_path / "out", "--text", tmp_path / "text.npz", "--bits", 8, *data)
    done("calibrate", model, "-o", tmp_path / "ranges.json", "--calibration-tokens", 256, "--tokenizer", folder)
    against = ["--against", model, "--text", tmp_path / "text.npz", "--tokenizer", folder]
    found = done("eval", tmp_path / "out", *against, "--json").json
    assert 0 < found["kl"] < 0.1
    asked = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    arguments = [*asked, "--max-new-tokens", 12, "--tokenizer", folder, "--json"]
    original, quantized = (done("generate", path, *arguments).json for path in (model, tmp_path / "out"))
    assert original["cache"]
    assert quantized["cache"]
    for prompt, tokens in zip(PROMPTS, original["tokens"], strict=True):
        expected = greedy(folder, [1, *(int(word[1:]) + 3 for word in prompt.split())], 12)
        assert tokens == expected[: len(tokens)]
        assert len(tokens) == 12 or expected[len(tokens)] == 2  # it ends where torch says that it ends
    assert all(len(tokens) > 0 for tokens in quantized["tokens"])
    assert contents(model.parent, folder) == before


def test_the_builders_own_client_runs_what_was_made(produced: Produced, environments: Path, tmp_path: Path) -> None:
    """Its genai_config.json goes along, and the text is that of `generate`."""
    model, folder = produced.model("genai-fp32", "llama"), produced.origin("genai-fp32", "llama")
    np.savez(tmp_path / "ids.npz", input_ids=np.random.default_rng(0).integers(3, VOCABULARY, (8, 32)))
    data = ["--calibration", tmp_path / "ids.npz", "--tokenizer", folder]
    done("quantize", model, "-o", tmp_path / "out", "--no-eval", "--spike-ratio", 1000, *data)
    ours = done("generate", tmp_path / "out", "--prompt", PROMPTS[0], "--max-new-tokens", 12, "--json").json["tokens"][
        0
    ]
    prompt = json.dumps([1, *(int(word[1:]) + 3 for word in PROMPTS[0].split())])
    command = [python_of("genai", environments), "-c", GENAI, str(tmp_path / "out"), prompt]
    client = subprocess.run(command, capture_output=True, text=True)
    assert client.returncode == 0, client.stderr
    assert json.loads(client.stdout.splitlines()[-1])[: len(ours)] == ours
    assert ours
